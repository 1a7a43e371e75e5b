"""What every peer computes: Pillow's decoding, then ONNX Runtime, then a softmax."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from app.core.imaging import crop_box, decode, preprocess
from app.core.parts import Preprocessing
from app.core.postprocess import postprocess
from app.core.spec import INPUT_NAME, LOGITS_NAME, MODEL_FILE, Manifest
from app.core.windows import patches


class Model:
    """The model that `BENCH_MODEL` names, in ONNX Runtime on `BENCH_DEVICE`, with `BENCH_THREADS` threads.

    It decodes with Pillow and takes whole pictures, or with `BENCH_WINDOWS=1` does both as this project's service.
    """

    def __init__(self, threads: int | None = None) -> None:
        """Load the model.

        Args:
            threads: In place of `BENCH_THREADS`.
        """
        folder = Path(os.environ["BENCH_MODEL"])
        self._in_windows = os.environ.get("BENCH_WINDOWS") == "1"
        self.manifest = Manifest.load(folder)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or int(os.environ["BENCH_THREADS"])
        provider = "CPUExecutionProvider"
        if os.environ["BENCH_DEVICE"] == "cuda":
            provider = "CUDAExecutionProvider"
            ort.preload_dlls()
        self.session = ort.InferenceSession(folder / MODEL_FILE, options, providers=[provider])
        if self.session.get_providers()[0] != provider:
            raise RuntimeError(f"{provider} can't be had")

    def answer(self, data: bytes) -> dict[str, Any]:
        """Answer one encoded picture."""
        spec = self.manifest.preprocessing
        pixels = _in_window(data, spec) if self._in_windows else _whole(data, spec)
        logits = self.session.run([LOGITS_NAME], {INPUT_NAME: pixels})[0]
        prediction = postprocess(logits[0], self.manifest)
        return {"label": prediction.label, "probabilities": prediction.probabilities}


def _in_window(data: bytes, spec: Preprocessing) -> NDArray[np.uint8]:
    (patch,) = patches(preprocess(decode(data), spec)[None], spec)
    return patch.pixels


def _whole(data: bytes, spec: Preprocessing) -> NDArray[np.uint8]:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    seen = picture.crop(crop_box(picture.size, spec))
    return np.asarray(seen.resize((spec.size_px, spec.size_px), Image.Resampling[spec.resample.upper()]))[None]
