"""The model as the Open Inference Protocol V2 shows it: its tensors, and an inference from end to end."""

import asyncio
import base64
import binascii
import reprlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.core.errors import ImageError, TensorError, TooManyImagesError
from app.core.spec import Manifest
from app.inference.classifier import Answer, Picture, Upload
from app.inference.engine import Engine, Serving
from app.recording import Caller, record
from app.services import Services
from app.v2.messages import InferInput, InferOutput, InferRequest, InferResponse, WantedOutput
from app.v2.tensors import TensorSpec, from_raw, from_values

SERVER_NAME: Final = "leukoscope"
EXTENSIONS: Final = ("binary_tensor_data",)
PLATFORM: Final = "onnxruntime_onnx"
IMAGE: Final = "image"
ENCODED: Final = "encoded"
LABELS: Final = "labels"

NOVELTY: Final = "novelty"

_LABELS_COUNT: Final = 2
_OUTPUTS: Final = {
    spec.name: spec
    for spec in (
        TensorSpec("probabilities", "FP32", (-1, _LABELS_COUNT)),
        TensorSpec("logits", "FP32", (-1, _LABELS_COUNT)),
        TensorSpec("label", "BYTES", (-1,)),
        TensorSpec("confidence", "FP32", (-1,)),
        TensorSpec("review", "BOOL", (-1,)),
        TensorSpec(NOVELTY, "FP32", (-1,)),
    )
}


def model_reference(name: str, version: str | None) -> str:
    """Join a name, and a version if one is given, to what `Engine.serving` takes."""
    return f"{name}@{version}" if version else name


def versions_of(engine: Engine, name: str) -> list[str]:
    """Return the versions of a model that answer, the active one first."""
    return [model.manifest.version for model in engine.resident if model.manifest.name == name]


def inputs_of(manifest: Manifest) -> dict[str, TensorSpec]:
    """Return the inputs by name; a request has exactly one of them."""
    side = manifest.preprocessing.size_px
    return {
        IMAGE: TensorSpec(IMAGE, "UINT8", (-1, side, side, 3)),
        ENCODED: TensorSpec(ENCODED, "BYTES", (-1,)),
    }


def outputs_of(manifest: Manifest) -> dict[str, TensorSpec]:
    """Return the outputs by name, in the order in which they are sent."""
    assert len(manifest.labels) == _LABELS_COUNT  # noqa: S101 - each manifest is checked for it
    return {name: spec for name, spec in _OUTPUTS.items() if name != NOVELTY or manifest.novelty is not None}


async def infer(
    services: Services, serving: Serving, caller: Caller, request: InferRequest, *, timeout_s: float
) -> InferResponse:
    """Answer an inference request, through the same queue as every other picture.

    Args:
        services: Of the running application.
        serving: The model.
        caller: Who asks.
        request: Not yet checked against the model.
        timeout_s: Time for the answer.

    Raises:
        TensorError: Inputs or outputs are not the model's, or a picture can't be read.
        TooManyImagesError: More than the settings accept.
        ServiceError: See `Classifier.answer`; also if the model failed on one of the pictures.
    """
    manifest = serving.model.manifest
    wanted = _wanted(request, outputs_of(manifest))
    # In a thread, for many plain values take long.
    pictures = await asyncio.to_thread(
        read_pictures, request.inputs, manifest, services.settings.max_images_per_request
    )
    answers: list[Answer] = []
    for index, result in enumerate(await serving.classifier.answer(pictures, timeout_s)):
        if isinstance(result, ImageError):
            raise TensorError(f"Picture {index} of {len(pictures)} (counted from 0) in {ENCODED!r}: {result}")
        if not isinstance(result, Answer):
            raise result
        answers.append(result)
    await record(services, caller, manifest, pictures, [answer.prediction for answer in answers])
    arrays = _arrays(answers, manifest)
    return InferResponse(
        model_name=manifest.name,
        model_version=manifest.version,
        id=request.id,
        parameters={LABELS: ",".join(manifest.labels)},
        outputs=tuple(InferOutput(_OUTPUTS[output.name], arrays[output.name], output.raw) for output in wanted),
    )


def read_pictures(inputs: Sequence[InferInput], manifest: Manifest, max_images: int) -> list[Picture]:
    """Read the pictures of a request's one input.

    Returns:
        Files yet to be decoded, or preprocessed pictures of shape ``(size_px, size_px, 3)``.

    Raises:
        TensorError: Not exactly one input, another name, datatype, shape or amount of data.
        TooManyImagesError: More than `max_images`.
    """
    specs = inputs_of(manifest)
    names = [tensor.name for tensor in inputs]
    if len(names) != 1 or names[0] not in specs:
        raise TensorError(f"The inputs are {reprlib.repr(names)}; expected exactly one, {_either(specs)}.")
    tensor, spec = inputs[0], specs[names[0]]
    spec.check(tensor.datatype, tensor.shape)
    if tensor.shape[0] == 0:
        raise TensorError(f"Input {spec.name!r} has no picture; expected at least one.")
    if tensor.shape[0] > max_images:
        raise TooManyImagesError(f"The request has {tensor.shape[0]:,} pictures; at most {max_images:,} are accepted.")
    if isinstance(tensor.content, memoryview):
        array = from_raw(spec, tensor.shape, tensor.content)
    else:
        array = from_values(spec, tensor.shape, tensor.content)
    if spec.name == IMAGE:
        return list(array)
    as_text = not isinstance(tensor.content, memoryview) and isinstance(tensor.content[0], str)
    return [Upload(None, _from_base64(index, item) if as_text else item) for index, item in enumerate(array)]


def _from_base64(index: int, text: bytes) -> bytes:
    # JSON has text alone, and no picture file is text; base64 is what other servers take, too.
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise TensorError(
            f"Picture {index} (counted from 0) in {ENCODED!r} is no base64: as JSON data, files go in base64; "
            "as binary data, as they are."
        ) from error


def _either(specs: dict[str, TensorSpec]) -> str:
    return " or ".join(f"{spec.name!r} ({spec.datatype} {list(spec.shape)})" for spec in specs.values())


def _wanted(request: InferRequest, specs: dict[str, TensorSpec]) -> Sequence[WantedOutput]:
    names = [output.name for output in request.outputs]
    unknown = [name for name in names if name not in specs]
    if unknown:
        raise TensorError(f"There is no output {reprlib.repr(unknown[0])}; there are {', '.join(specs)}.")
    if len(set(names)) < len(names):
        raise TensorError(f"An output is asked for twice: {reprlib.repr(names)}.")
    return request.outputs or [WantedOutput(name, request.raw) for name in specs]


def _arrays(answers: Sequence[Answer], manifest: Manifest) -> dict[str, NDArray[Any]]:
    predictions = [answer.prediction for answer in answers]
    arrays: dict[str, NDArray[Any]] = {
        "probabilities": np.array(
            [[prediction.probabilities[label] for label in manifest.labels] for prediction in predictions], np.float32
        ),
        "logits": np.stack([answer.outputs.logits for answer in answers]),
        "label": np.array([prediction.label.encode() for prediction in predictions], dtype=object),
        "confidence": np.array([prediction.confidence for prediction in predictions], np.float32),
        "review": np.array([prediction.review for prediction in predictions], np.bool_),
    }
    if manifest.novelty is not None:
        arrays[NOVELTY] = np.array([answer.outputs.novelty for answer in answers], np.float32)
    return arrays
