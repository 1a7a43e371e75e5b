"""The bodies that the service answers with, as pydantic models, for OpenAPI too."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class ModelName(_Answer):
    """Which model answered."""

    name: str
    version: str


class PredictedImage(_Answer):
    """The answer for one picture."""

    filename: Annotated[str | None, Field(description="As uploaded; null for a raw body.")]
    label: Annotated[Literal["ALL", "HEM"], Field(description="ALL: leukemic blast; HEM: normal cell.")]
    confidence: Annotated[float, Field(ge=0, le=1, description="Calibrated probability of the label.")]
    probabilities: Annotated[dict[str, float], Field(description="Of each label; they sum to 1.")]
    review: Annotated[bool, Field(description="Whether a person should look.")]
    reasons: Annotated[list[str], Field(description="Why a person should look, such as low-confidence.")]


class ImageProblem(_Answer):
    """Why one picture has no answer: an RFC 9457 problem without the request's own members."""

    type: str
    title: str
    status: int
    detail: str


class FailedImage(_Answer):
    """One picture that has no answer; its neighbours are not affected."""

    filename: str | None
    error: ImageProblem


class Summary(_Answer):
    """Counts over the pictures of one request."""

    images: int
    ALL: int
    HEM: int
    review: int
    errors: int


class PredictResponse(_Answer):
    """The answer to `POST /predict`, in the order of upload."""

    request_id: str
    model: ModelName
    predictions: list[PredictedImage | FailedImage]
    summary: Summary


class Problem(_Answer):
    """An RFC 9457 problem."""

    type: str
    title: str
    status: int
    detail: str
    instance: Annotated[str, Field(description="Path of the request.")]
    request_id: str
    errors: Annotated[
        list[FailedImage] | None, Field(description="Each picture's own problem, if there were several.")
    ] = None


class Liveness(_Answer):
    """Whether the process runs, or nothing but a restart helps."""

    status: Literal["alive", "hung"]
    reason: str | None


class Provider(_Answer):
    """Where the model runs."""

    requested: Annotated[str, Field(description="The setting: auto, cpu or cuda.")]
    active: Annotated[str | None, Field(description="Read back from the session; null before it is loaded.")]


class Readiness(_Answer):
    """Whether predictions are answered now, and if not, why."""

    status: Literal["starting", "ready", "draining", "failed"]
    reason: str | None
    model: ModelName | None
    provider: Provider


class InstalledModel(_Answer):
    """One folder under models/."""

    name: str
    version: str
    active: bool
    verified: Annotated[bool, Field(description="Whether every file has the hash that the manifest names.")]
    problem: Annotated[str | None, Field(description="What is wrong with the folder, if anything.")]
    manifest: Annotated[dict[str, Any] | None, Field(description="Without the golden picture.")]
    metrics: Annotated[dict[str, Any], Field(description="Measured figures: report.json.")]
    hashes: Annotated[dict[str, str], Field(description="SHA-256 of each file.")]


class ModelList(_Answer):
    """What is installed."""

    active: ModelName | None
    resident: Annotated[list[ModelName], Field(description="All that answer now, by ?model=.")]
    models: list[InstalledModel]


class ActiveModel(InstalledModel):
    """What is served, and where it runs."""

    provider: Provider
    precision: Annotated[str, Field(description="Of the arithmetic that runs, such as fp32.")]
    max_batch: Annotated[int, Field(description="Most pictures in one run of the model.")]


class ModelChoice(BaseModel):
    """Which installed model is to be served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100, examples=["efficientnet-b3"])]
    version: Annotated[str, Field(min_length=1, max_length=100, examples=["1.0.0"])]


class SwitchedModel(ActiveModel):
    """What is served from now on."""

    persisted: Annotated[bool, Field(description="Whether the next start will serve it too.")]
    persist_problem: Annotated[str | None, Field(description="Why not.")]


class V2Error(_Answer):
    """An error in the Open Inference Protocol."""

    error: str


class V2Server(_Answer):
    """What the server is, in the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class V2Live(_Answer):
    """The server can go on."""

    live: Literal[True] = True


class V2Ready(_Answer):
    """The server answers inference requests now."""

    ready: Literal[True] = True


class V2ModelReady(V2Ready):
    """The model answers inference requests now."""

    name: str


class V2Tensor(_Answer):
    """One input or output."""

    name: str
    datatype: str
    shape: Annotated[list[int], Field(description="-1 is any length.")]


class V2Model(_Answer):
    """What a model takes and gives, in the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: Annotated[list[V2Tensor], Field(description="A request has exactly one of them.")]
    outputs: list[V2Tensor]
