"""What an inference request asks and what its response says, however they travel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from app.v2.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class InferInput:
    """One input tensor as it came.

    Attributes:
        name: Of the input.
        datatype: As the client says.
        shape: As the client says.
        content: Raw bytes, or plain values: flat or nested, with text or bytes for BYTES.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    content: memoryview | Sequence[Any]


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output that the client asks for, and whether as raw bytes."""

    name: str
    raw: bool


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One inference request.

    Attributes:
        id: To be echoed; None if it has none.
        inputs: All input tensors.
        outputs: The outputs asked for; empty for all.
        raw: Whether outputs that are not asked for by name are to be raw bytes.
    """

    id: str | None
    inputs: tuple[InferInput, ...]
    outputs: tuple[WantedOutput, ...]
    raw: bool


@dataclass(frozen=True, slots=True)
class InferOutput:
    """One output tensor, and whether it is to be sent as raw bytes."""

    spec: TensorSpec
    array: NDArray[Any]
    raw: bool


@dataclass(frozen=True, slots=True)
class InferResponse:
    """One inference response.

    Attributes:
        model_name: Which model answered.
        model_version: Its version.
        id: That of the request.
        parameters: What else a client must know.
        outputs: In the order asked for.
    """

    model_name: str
    model_version: str
    id: str | None
    parameters: dict[str, str]
    outputs: tuple[InferOutput, ...]
