"""Inference requests and responses as HTTP bodies: JSON, with raw tensor data behind it if need be."""

import json
import reprlib
from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from app.core.errors import BodyTooLargeError, TensorError
from app.v2.messages import InferInput, InferOutput, InferRequest, InferResponse, WantedOutput
from app.v2.tensors import to_raw, to_values

LENGTH_HEADER: Final = "Inference-Header-Content-Length"

_SHOWN_FAULTS: Final = 3
_NULL_IS_EMPTY: Final = BeforeValidator(lambda raw: {} if raw is None else raw)


class _Message(BaseModel):
    # Members that are not known are left alone: the protocol may grow, and servers have extensions.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class _Unsupported(_Message):
    shared_memory_region: Any = None
    classification: Any = None


class _InputParameters(_Unsupported):
    binary_data_size: Annotated[int, Field(ge=0)] | None = None


class _Input(_Message):
    name: str
    datatype: str
    shape: list[int]
    parameters: Annotated[_InputParameters, _NULL_IS_EMPTY] = _InputParameters()
    data: list[Any] | None = None


class _OutputParameters(_Unsupported):
    binary_data: bool | None = None


class _Output(_Message):
    name: str
    parameters: Annotated[_OutputParameters, _NULL_IS_EMPTY] = _OutputParameters()


class _RequestParameters(_Message):
    binary_data_output: bool | None = None


class _Request(_Message):
    id: str | None = None
    inputs: list[_Input]
    outputs: list[_Output] | None = None
    parameters: Annotated[_RequestParameters, _NULL_IS_EMPTY] = _RequestParameters()


def parse(body: bytes | bytearray, header_length: str | None, *, max_json_bytes: int) -> InferRequest:
    """Read a request's body.

    Args:
        body: All of it. The result's raw contents are views of it.
        header_length: The header `LENGTH_HEADER`: how many bytes of the body are JSON; None for all.
        max_json_bytes: Most bytes of JSON.

    Raises:
        TensorError: No JSON, not a request, or its sizes don't add up to the body.
        BodyTooLargeError: More than `max_json_bytes` of JSON.
    """
    length = _json_length(header_length, len(body))
    if length > max_json_bytes:
        raise BodyTooLargeError(
            f"The request has {length:,} bytes of JSON; at most {max_json_bytes:,} are read. "
            "Send tensors as binary data (binary_data_size)."
        )
    view = memoryview(body)
    try:
        message = _Request.model_validate_json(bytes(view[:length]))
    except ValidationError as error:
        raise TensorError(f"The request is malformed: {_faults(error)}.") from error
    raw_default = bool(message.parameters.binary_data_output)
    return InferRequest(
        id=message.id,
        inputs=_inputs(message.inputs, view[length:]),
        outputs=tuple(_wanted(output, raw_default) for output in message.outputs or []),
        raw=raw_default,
    )


def render(response: InferResponse) -> tuple[bytes, int | None]:
    """Write a response's body.

    Returns:
        The body, and how many of its bytes are JSON where raw data follows; None where none does.
    """
    outputs: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for output in response.outputs:
        outputs.append(_described(output))
        if output.raw:
            raw.append(to_raw(output.array, output.spec.datatype))
            outputs[-1]["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            outputs[-1]["data"] = to_values(output.array, output.spec.datatype)
    message = {
        "model_name": response.model_name,
        "model_version": response.model_version,
        **({} if response.id is None else {"id": response.id}),
        "parameters": response.parameters,
        "outputs": outputs,
    }
    head = json.dumps(message, separators=(",", ":")).encode("ascii")
    return b"".join([head, *raw]), len(head) if raw else None


def _json_length(header: str | None, available: int) -> int:
    if header is None:
        return available
    if not (header.isascii() and header.isdecimal() and len(header) < 20 and int(header) <= available):
        raise TensorError(
            f"The header {LENGTH_HEADER} is {reprlib.repr(header)}; expected how many of the body's "
            f"{available:,} bytes are JSON."
        )
    return int(header)


def _faults(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [
        f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" if fault["loc"] else fault["msg"]
        for fault in faults[:_SHOWN_FAULTS]
    ]
    return "; ".join(shown)


def _inputs(inputs: Sequence[_Input], raw: memoryview) -> tuple[InferInput, ...]:
    read: list[InferInput] = []
    at = 0
    for tensor in inputs:
        _refuse_unsupported(tensor.name, tensor.parameters)
        size = tensor.parameters.binary_data_size
        if (size is None) == (tensor.data is None):
            raise TensorError(
                f"Input {reprlib.repr(tensor.name)} needs either data or the parameter binary_data_size, and not both."
            )
        content = raw[at : at + (size or 0)] if tensor.data is None else tensor.data
        read.append(InferInput(tensor.name, tensor.datatype, tensor.shape, content))
        at += size or 0
    if at != len(raw):
        raise TensorError(
            f"The inputs have {at:,} bytes of binary data by binary_data_size; {len(raw):,} bytes follow the JSON."
        )
    return tuple(read)


def _wanted(output: _Output, raw_default: bool) -> WantedOutput:
    _refuse_unsupported(output.name, output.parameters)
    binary = output.parameters.binary_data
    return WantedOutput(output.name, raw_default if binary is None else binary)


def _refuse_unsupported(name: str, parameters: _Unsupported) -> None:
    for extension in _Unsupported.model_fields:
        if getattr(parameters, extension) is not None:
            raise TensorError(f"Tensor {reprlib.repr(name)}: the parameter {extension} is not supported here.")


def _described(output: InferOutput) -> dict[str, Any]:
    return {"name": output.spec.name, "datatype": output.spec.datatype, "shape": list(output.array.shape)}
