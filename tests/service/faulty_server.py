"""`leukoscope serve` with a model, a disk or a clock that misbehaves on command; a process of its own.

Environment: `FAULT_FILE` names a file whose words say how the model behaves from the next batch on:
nothing, `raise`, `nan`, `hang`, `memory N` (no room for more than N pictures) or `slow SECONDS`.
`FAULT_DECODER=breaks` makes the decoder break, in no way that it knows of, on pictures that begin with `BREAK`.
`FAULT_DISK=full` lets no file grow. `FAULT_CLOCK=jumps` makes the wall clock jump by a day at each look.
"""

import os
import resource
import time
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import app.cli
from app.core import imaging
from app.core.spec import Manifest
from app.inference.outputs import Outputs
from app.inference.providers import Placement
from app.inference.session import OnnxSession
from app.main import create_app

_PAUSE_S = 0.01


class FaultySession(OnnxSession):
    """The real session, unless told otherwise."""

    fault = Path(os.environ.get("FAULT_FILE", os.devnull))

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        word, *argument = self._words()
        if word == "slow":
            time.sleep(float(argument[0]))
        while word == "hang" and self._words()[0] == "hang":
            time.sleep(_PAUSE_S)
        if word == "raise":
            raise RuntimeError("secret internals")
        if word == "memory" and len(images) > int(argument[0]):
            full = MemoryError("bad_alloc")
            self._session = _Full(self._session, full, int(argument[0]))
        outputs = super().run(images)
        return Outputs(np.full_like(outputs.logits, np.nan)) if word == "nan" else outputs

    def _words(self) -> list[str]:
        try:
            return self.fault.read_text(encoding="ascii").split() or [""]
        except FileNotFoundError:
            return [""]


class _Full:
    """ONNX Runtime on a device with room for a few pictures."""

    def __init__(self, session: object, error: MemoryError, room: int) -> None:
        self._session = session
        self._error = error
        self._room = room

    def run(self, names: list[str], inputs: dict[str, NDArray[np.uint8]]) -> object:
        if len(inputs["image"]) > self._room:
            raise self._error
        return self._session.run(names, inputs)  # type: ignore[attr-defined]


def open_faulty(path: Path, manifest: Manifest, placement: Placement) -> OnnxSession:
    return FaultySession.create(path, manifest, placement)


def break_decoder() -> None:
    decode = imaging.decode

    def breaking(data: bytes, **options: int) -> Image.Image:
        if data.startswith(b"BREAK"):
            raise MemoryError("secret internals")
        return decode(data, **options)

    setattr(imaging, "decode", breaking)  # noqa: B010 - as below


def main() -> None:
    if os.environ.get("FAULT_DECODER") == "breaks":
        break_decoder()
    if os.environ.get("FAULT_DISK") == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if os.environ.get("FAULT_CLOCK") == "jumps":
        true_time, looks = time.time, count()
        time.time = lambda: true_time() + (86_400 if next(looks) % 2 else -86_400)
    setattr(app.cli, "create_app", partial(create_app, open_session=open_faulty))  # noqa: B010 - not exported
    app.cli.main()


if __name__ == "__main__":
    main()
