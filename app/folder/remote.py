"""Have pictures answered by a running service, patiently: busy, starting and gone are waited for."""

import asyncio
import email.utils
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import httpx
from pydantic import ValidationError

from app.core.postprocess import Prediction
from app.folder.answers import HEAT_MAP_STYLE, Answer
from app.folder.errors import StoppedError, UsageError
from app.inference.registry import ModelRef
from app.schemas import FailedImage, PredictResponse, Problem, Readiness
from app.security.keys import KEY_HEADER

_CHUNK: Final = 16
_BUSY: Final = frozenset({429, 502, 503, 504})
_TIMEOUT: Final = httpx.Timeout(connect=10, read=120, write=120, pool=None)
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0


class Service:
    """A running Leukoscope service."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        patience_s: float,
        heat_maps: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Make the client.

        Args:
            url: Such as ``http://127.0.0.1:8000``; may end in a path under which the service lies.
            api_key: Sent as `KEY_HEADER`, if the service wants one.
            patience_s: How long a service that does not answer is waited for.
            heat_maps: Whether to ask for each picture's heat-map too.
            transport: What carries requests; None for the network.

        Raises:
            UsageError: The address is none.
        """
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--server {url}: expected an address that begins with http:// or https://")
        headers = {} if api_key is None else {KEY_HEADER: api_key}
        try:
            self._client = httpx.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT, transport=transport)
        except (httpx.InvalidURL, ValueError) as error:
            raise UsageError(f"--server {url}: is no address: {error}") from error
        self._url = url
        self._patience_s = patience_s
        self._heat_maps = heat_maps
        self._model: ModelRef | None = None
        self.chunk = _CHUNK

    @property
    def model(self) -> ModelRef:
        """The model that the service named when it was first asked."""
        if self._model is None:
            raise StoppedError(f"{self._url}: the service has not named its model")
        return self._model

    async def __aenter__(self) -> Self:
        """Wait until the service is ready, and note its model."""
        response = await self._ask("GET", "readyz")
        try:
            ready = Readiness.model_validate_json(response.content)
        except ValidationError as error:
            raise StoppedError(f"{self._url}: does not answer as a Leukoscope service") from error
        if ready.model is not None:
            self._model = ModelRef(ready.model.name, ready.model.version)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def answer(self, pictures: Sequence[bytes]) -> Answer:
        """Answer some pictures; file names stay here."""
        answer = await self._predict(pictures)
        if not self._heat_maps:
            return answer
        heat_maps = [
            await self._explain(data) if isinstance(result, Prediction) else None
            for data, result in zip(pictures, answer.results, strict=True)
        ]
        return Answer(answer.model, answer.results, heat_maps)

    async def _predict(self, pictures: Sequence[bytes]) -> Answer:
        files = [("files", (str(number), data)) for number, data in enumerate(pictures)]
        response = await self._ask("POST", "predict", files=files)
        if response.status_code == 200:
            return self._answered(response, len(pictures))
        if response.status_code in {413, 422}:
            return await self._refused(response, pictures)
        raise StoppedError(f"{self._url}: {_words(response)}")

    async def _explain(self, data: bytes) -> bytes:
        response = await self._ask("POST", f"explain?style={HEAT_MAP_STYLE}", files=[("file", ("0", data))])
        if response.status_code in {404, 501}:
            raise UsageError(f"--explain: {self._url}: {_words(response)}")
        if response.status_code != 200:
            raise StoppedError(f"{self._url}: {_words(response)}")
        return response.content

    async def _ask(
        self, method: str, path: str, files: list[tuple[str, tuple[str, bytes]]] | None = None
    ) -> httpx.Response:
        """Send a request until something else than "not now" comes, or patience ends."""
        began_s = time.monotonic()
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                response = await self._client.request(method, path, files=files)
                if response.status_code not in _BUSY:
                    return response
                trouble, wanted_s = _words(response), _retry_after_s(response)
            except (httpx.TransportError, httpx.DecodingError) as error:
                trouble, wanted_s = str(error) or type(error).__name__, None
            wait_s = pause_s if wanted_s is None else wanted_s
            if time.monotonic() + wait_s - began_s > self._patience_s:
                raise StoppedError(f"{self._url}: no answer for {self._patience_s:g} s; the last was: {trouble}")
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _answered(self, response: httpx.Response, count: int) -> Answer:
        try:
            body = PredictResponse.model_validate_json(response.content)
        except ValidationError as error:
            raise StoppedError(f"{self._url}: the answer is not understood; another version?") from error
        if len(body.predictions) != count:
            raise StoppedError(f"{self._url}: {len(body.predictions)} answers came for {count} pictures")
        results = [
            item.error.detail
            if isinstance(item, FailedImage)
            else Prediction(item.label, item.confidence, item.probabilities, tuple(item.reasons))
            for item in body.predictions
        ]
        return Answer(ModelRef(body.model.name, body.model.version), results)

    async def _refused(self, response: httpx.Response, pictures: Sequence[bytes]) -> Answer:
        """Take the pictures one by one, until the fault is one picture's own."""
        if len(pictures) == 1:
            return Answer(self.model, [_words(response)])
        half = len(pictures) // 2
        first, second = await self._predict(pictures[:half]), await self._predict(pictures[half:])
        return Answer(first.model, [*first.results, *second.results])


def _words(response: httpx.Response) -> str:
    with suppress(ValidationError):
        return Problem.model_validate_json(response.content).detail
    with suppress(ValidationError):
        return Readiness.model_validate_json(response.content).reason or "The service is not ready."
    return f"status {response.status_code} {response.reason_phrase}"


def _retry_after_s(response: httpx.Response) -> float | None:
    """Read ``Retry-After`` (RFC 9110, 10.2.3): seconds or a date."""
    value = response.headers.get("retry-after", "")
    if value.isdecimal():
        return max(_FIRST_PAUSE_S, float(value))
    try:
        return max(_FIRST_PAUSE_S, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
