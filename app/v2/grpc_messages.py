"""Inference requests and responses as the messages of the protocol's gRPC service."""

import reprlib
from typing import Any, Final

from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from app.core.errors import BodyTooLargeError, TensorError
from app.v2.messages import InferInput, InferRequest, InferResponse, WantedOutput
from app.v2.tensors import Datatype, TensorSpec, to_raw, to_values

# Where typed contents of each datatype stand.
_FIELDS: Final[dict[str, str]] = {
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
    "FP32": "fp32_contents",
    "UINT8": "uint_contents",
}
_UNSUPPORTED: Final = ("shared_memory_region", "classification")


def parse(message: pb.ModelInferRequest, *, max_values: int) -> InferRequest:
    """Read a `ModelInferRequest`.

    Args:
        message: Of any content.
        max_values: Most numbers as typed contents, which take many times the memory of raw ones.

    Raises:
        TensorError: Raw and typed contents are mixed, or don't fit the inputs.
        BodyTooLargeError: More than `max_values`.
    """
    if any(len(tensor.contents.uint_contents) > max_values for tensor in message.inputs):
        raise BodyTooLargeError(f"More than {max_values:,} numbers as typed contents; send raw_input_contents.")
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise TensorError(f"There are {len(raw)} raw_input_contents for {len(message.inputs)} inputs.")
    inputs = [
        InferInput(tensor.name, tensor.datatype, list(tensor.shape), _content(tensor, raw[index] if raw else None))
        for index, tensor in enumerate(message.inputs)
    ]
    for output in message.outputs:
        _refuse_unsupported(output)
    return InferRequest(
        id=message.id or None,
        inputs=tuple(inputs),
        # As it was asked, so it is answered: typed contents for typed contents.
        outputs=tuple(WantedOutput(output.name, bool(raw)) for output in message.outputs),
        raw=bool(raw),
    )


def render(response: InferResponse) -> pb.ModelInferResponse:
    """Write a `ModelInferResponse`."""
    message = pb.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version, id=response.id or ""
    )
    for name, value in response.parameters.items():
        message.parameters[name].string_param = value
    for output in response.outputs:
        datatype = output.spec.datatype
        tensor = message.outputs.add(name=output.spec.name, datatype=datatype, shape=output.array.shape)
        if output.raw:
            message.raw_output_contents.append(to_raw(output.array, datatype))
        else:
            getattr(tensor.contents, _FIELDS[datatype]).extend(_values(output.array, datatype))
    return message


def metadata(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    """Write a `TensorMetadata`."""
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def _content(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> memoryview | list[Any]:
    _refuse_unsupported(tensor)
    typed = [field.name for field, _ in tensor.contents.ListFields()]
    if raw is not None:
        if typed:
            raise TensorError(f"Input {reprlib.repr(tensor.name)} has both raw_input_contents and {typed[0]}.")
        return memoryview(raw)
    field = _FIELDS.get(tensor.datatype)
    if field is None or typed != [field]:
        expected = f"{field} or raw_input_contents" if field else "raw_input_contents"
        raise TensorError(
            f"Input {reprlib.repr(tensor.name)} of datatype {reprlib.repr(tensor.datatype)} has "
            f"{' and '.join(typed) or 'no contents'}; expected {expected}."
        )
    return list(getattr(tensor.contents, field))


def _values(array: NDArray[Any], datatype: Datatype) -> list[Any]:
    return list(array.flat) if datatype == "BYTES" else to_values(array, datatype)


def _refuse_unsupported(
    tensor: pb.ModelInferRequest.InferInputTensor | pb.ModelInferRequest.InferRequestedOutputTensor,
) -> None:
    for extension in _UNSUPPORTED:
        if extension in tensor.parameters:
            raise TensorError(f"Tensor {reprlib.repr(tensor.name)}: the parameter {extension} is not supported here.")
