"""All engines of the cluster through Ray Serve's handle: calls, cancellation, and what to do when an engine dies."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from app.cluster.messages import Described, Order, Results
from app.core.errors import InferenceError, LeukoscopeError, NotReadyError, QueueFullError
from app.inference.deadline import left_s, until
from app.inference.registry import ModelRef

_LOG: Final = logging.getLogger(__name__)

# A picture that kills an engine must not kill one after another.
_ATTEMPTS: Final = 5
_FIRST_PAUSE_S: Final = 0.05
_RETRY_AFTER_S: Final = 1.0
_WAIT_S: Final = 0.5
_LOAD_LIMIT_S: Final = 600.0
_TELL_LIMIT_S: Final = 10.0


class HandleEngines:
    """The engines behind a deployment's handle; see `app.cluster.messages.Engines`."""

    def __init__(self, engines: DeploymentHandle, peers: Callable[[], DeploymentHandle]) -> None:
        """Make it.

        Args:
            engines: Of the deployment with the engines.
            peers: Gives the handle of the deployment of all who decode.
        """
        self._engines = engines
        self._peers = peers

    async def run(self, order: Order, images: NDArray[np.uint8]) -> Results:
        """Have pictures computed; where an engine dies meanwhile, by another one."""
        fault: LeukoscopeError = InferenceError("The model failed.")
        pause_s = _FIRST_PAUSE_S
        for _ in range(_ATTEMPTS):
            try:
                result = await _answer(self._engines.run.remote(order, images))
            except RayTaskError as error:
                _LOG.exception("an engine broke")
                raise InferenceError("The model failed.") from error
            except RayError as error:
                _LOG.warning("an engine is lost, another one is asked: %s", type(error).__name__)
                fault = InferenceError("The engines were lost while they worked on this.")
            else:
                if not isinstance(result, LeukoscopeError):
                    results: Results = result
                    return results
                if not isinstance(result, NotReadyError):
                    raise result
                fault = result  # that one; another may be well
            await asyncio.sleep(pause_s)
            pause_s *= 2
            order = Order(order.ref, min(order.left_s, left_s() or order.left_s), order.log)
        raise fault

    async def load(self, ref: ModelRef) -> Described:
        """Have every engine that runs now load a model; where none runs yet, the first one that does."""
        try:
            answers = await _from_all(self._engines, "load", ref, limit_s=_LOAD_LIMIT_S)
        except NotReadyError:
            answers = [await self._load_on_first(ref)]
        described: Described | None = None
        for answer in answers:
            if isinstance(answer, LeukoscopeError):
                raise answer
            if isinstance(answer, RayTaskError):
                raise InferenceError("An engine broke while it loaded the model.") from answer
            if isinstance(answer, Described):  # anything else is an engine that is gone
                described = answer
        if described is None:
            raise NotReadyError("No engine of the cluster runs.")
        return described

    async def _load_on_first(self, ref: ModelRef) -> Any:  # noqa: ANN401 - as `EngineDeployment.load`
        """Wait for an engine, which the whole cluster's start may take a while to have, and ask it."""
        async with until(asyncio.get_running_loop().time() + _LOAD_LIMIT_S, "No engine of the cluster has started."):
            while True:
                try:
                    return await _answer(self._engines.load.remote(ref))
                except (NotReadyError, RayError) as error:
                    if isinstance(error, RayTaskError):
                        return error
                    await asyncio.sleep(_WAIT_S)

    async def adopted(self, ref: ModelRef) -> None:
        """Tell the engines, and all who decode."""
        answers = await _from_all(self._engines, "adopted", ref, limit_s=_TELL_LIMIT_S)
        answers += await _from_all(self._peers(), "follow", ref, limit_s=_TELL_LIMIT_S)
        faults = [answer for answer in answers if isinstance(answer, Exception)]
        if faults:
            raise NotReadyError(f"{len(faults)} of {len(answers)} could not be told: {faults[0]}")

    async def ping(self) -> None:
        """Return if an engine answers."""
        try:
            await _answer(self._engines.ping.remote())
        except RayError as error:
            raise NotReadyError(f"an engine failed: {error}") from error


async def _answer(response: "DeploymentResponse[Any]") -> Any:  # noqa: ANN401 - what the called method returns
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()  # there too
        raise
    except BackPressureError as error:
        raise QueueFullError("As many calls wait for the engines as are admitted.", _RETRY_AFTER_S) from error
    except DeploymentUnavailableError as error:
        raise NotReadyError("No engine of the cluster runs.") from error


async def _from_all(handle: DeploymentHandle, method: str, ref: ModelRef, *, limit_s: float) -> list[Any]:
    """Call a method of every replica that runs now, and return what each answered or raised."""
    try:
        return list(await handle.broadcast(method, ref).results_async(timeout_s=limit_s, return_exceptions=True))
    except DeploymentUnavailableError as error:
        raise NotReadyError("No engine of the cluster runs.") from error
    except TimeoutError as error:
        raise NotReadyError(f"Not all of the cluster have answered within {limit_s:g} s.") from error
