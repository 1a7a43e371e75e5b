"""Rounding to 8 bits as operators of their own, which the ONNX export writes as quantise-dequantise nodes."""

from collections.abc import Callable
from typing import Any, Final

import torch
from onnx import TensorProto
from onnxscript import opset20 as op
from torch import Tensor


@torch.library.custom_op("leukoscope::round_trip", mutates_args=())
def round_trip(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Round values to the 256 numbers ``(0..255 - zero_point) * scale``.

    Args:
        values: Float32, any shape.
        scale: A float32 number.
        zero_point: An int32 number, 0..255.
    """
    # PyTorch's own `fake_quantize_per_tensor_affine` also makes a mask for gradients, which nobody needs here.
    rounded = (values / scale).round_().add_(zero_point).clamp_(0, 255)
    return rounded.sub_(zero_point).mul_(scale)


@torch.library.custom_op("leukoscope::dequantise", mutates_args=())
def dequantise(weight: Tensor, scale: Tensor) -> Tensor:
    """Return int8 weights as float32, shape ``(out_channels, ...)``, times a scale of shape ``(out_channels,)``."""
    return weight.float() * scale.view(-1, *[1] * (weight.dim() - 1))


@round_trip.register_fake
def _round_trip_shape(values: Tensor, _scale: Tensor, _zero_point: Tensor) -> Tensor:
    return torch.empty_like(values)


@dequantise.register_fake
def _dequantise_shape(weight: Tensor, _scale: Tensor) -> Tensor:
    return torch.empty_like(weight, dtype=torch.float32)


def _round_trip_onnx(values: Any, scale: Any, zero_point: Any) -> Any:
    zero: Any = op.Cast(zero_point, to=TensorProto.UINT8)
    rounded: Any = op.QuantizeLinear(values, scale, zero)
    return op.DequantizeLinear(rounded, scale, zero)


def _dequantise_onnx(weight: Any, scale: Any) -> Any:
    return op.DequantizeLinear(weight, scale, axis=0)


# For `torch.onnx.export`: how each operator is written.
TRANSLATIONS: Final[dict[Callable[..., Any], Callable[..., Any]]] = {
    torch.ops.leukoscope.round_trip.default: _round_trip_onnx,
    torch.ops.leukoscope.dequantise.default: _dequantise_onnx,
}
