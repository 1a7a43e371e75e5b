"""What every peer computes: the service's own decoding, then ONNX Runtime, then a softmax."""

import os
from pathlib import Path
from typing import Any

import onnxruntime as ort

from app.core.imaging import decode, preprocess
from app.core.postprocess import postprocess
from app.core.spec import INPUT_NAME, LOGITS_NAME, MODEL_FILE, Manifest
from app.core.windows import patches


class Model:
    """The model that `BENCH_MODEL` names, in ONNX Runtime on `BENCH_DEVICE`, with `BENCH_THREADS` threads.

    It takes whole pictures, or with `BENCH_WINDOWS=1` what this project's service looks at.
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
        pixels = preprocess(decode(data), spec)[None]
        if self._in_windows:
            (patch,) = patches(pixels, spec)
            pixels = patch.pixels
        logits = self.session.run([LOGITS_NAME], {INPUT_NAME: pixels})[0]
        prediction = postprocess(logits[0], self.manifest)
        return {"label": prediction.label, "probabilities": prediction.probabilities}
