"""Static INT8: a graph whose convolutions compute with 8 bits, calibrated on training cells alone."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from app.core.parts import Preprocessing
from app.core.spec import INPUT_NAME
from app.core.windows import patches

_CALIBRATION_CELLS: Final = 128
_BATCH: Final = 16


class Cells(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
    """Hands training cells to the calibration, batch by batch."""

    def __init__(self, images: NDArray[np.uint8], spec: Preprocessing) -> None:
        self._batches = calibration_batches(images, spec)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch, or None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_NAME: batch}


def calibration_cells(inputs: NDArray[np.uint8], train: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Choose cells of the training part, evenly over it.

    Args:
        inputs: All pictures, shape ``(cells, size, size, 3)``.
        train: Rows of the training part.
    """
    rows = train[:: max(1, len(train) // _CALIBRATION_CELLS)][:_CALIBRATION_CELLS]
    return np.ascontiguousarray(inputs[rows])


def calibration_batches(cells: NDArray[np.uint8], spec: Preprocessing) -> Iterator[NDArray[np.uint8]]:
    """Yield cells, each in its window, in batches of one size."""
    for patch in patches(cells, spec):
        for start in range(0, len(patch.pixels), _BATCH):
            yield patch.pixels[start : start + _BATCH]


def quantise(model: Path, target: Path, cells: NDArray[np.uint8], spec: Preprocessing) -> None:
    """Write a graph with quantise-dequantise pairs around its convolutions.

    Weights are signed, by channel; activations are unsigned. The head stays in float32.

    Args:
        model: A float32 graph.
        target: To write.
        cells: Of the training part, shape ``(cells, size, size, 3)``.
        spec: Their preprocessing.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".quantise-") as scratch:
        folded = Path(scratch) / "folded.onnx"
        # Folds batch norms into the convolutions before them.
        quant_pre_process(model, folded, skip_symbolic_shape=True)
        quantize_static(
            folded,
            target,
            Cells(cells, spec),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            # What a convolution gives stays as it is until the next one takes it, so that an engine can
            # have the activation done before it rounds.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Conv"]},
        )
    quantised = onnx.load(target)
    del quantised.graph.value_info[:]
    onnx.checker.check_model(quantised, full_check=True)
    onnx.save(quantised, target)
