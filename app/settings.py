"""The service's settings: environment variables `LEUKOSCOPE_*`, each bounded, unknown ones refused."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args, get_origin

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.logs import LogFormat

PREFIX: Final = "LEUKOSCOPE_"
MIB: Final = 1024 * 1024
# Of `leukoscope predict --server`: a client's, so no setting of the service, but no misspelling either.
CLIENT_KEY_VARIABLE: Final = PREFIX + "API_KEY"

Device = Literal["auto", "cpu", "cuda"]
CpuEngine = Literal["onnxruntime", "openvino", "auto"]
CudaEngine = Literal["cuda", "cuda-graph", "tensorrt"]
Precision = Literal["model", "fp16", "bf16", "int8"]
Traces = Literal["off", "otlp"]
AuditFailure = Literal["refuse", "answer"]
LogLevel = Literal["debug", "info", "warning", "error"]


class SettingsError(ValueError):
    """The service can't be started with these settings."""


class Settings(BaseSettings):
    """All that an operator can set. Frozen; units are in the names."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    host: Annotated[str, Field(min_length=1, description="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535, description="TCP port to listen on.")] = 8000
    grpc_port: Annotated[
        int, Field(ge=0, le=65535, description="TCP port of the same /v2 protocol over gRPC; 0 = off.")
    ] = 0
    api_keys: Annotated[
        str, Field(repr=False, description="Keys of clients, NAME:HASH,... as `leukoscope keys new` prints them.")
    ] = ""
    api_keys_file: Annotated[Path | None, Field(description="The same in a file, one on a line.")] = None
    admin_keys: Annotated[
        str, Field(repr=False, description="Keys of those who may change what is served, in the same form.")
    ] = ""
    admin_keys_file: Annotated[Path | None, Field(description="The same in a file, one on a line.")] = None
    allow_anonymous: Annotated[
        bool, Field(description="Listen on an address that others can reach though no API key is set.")
    ] = False
    metrics_need_key: Annotated[bool, Field(description="Whether /metrics is for the holders of keys only.")] = False
    models_dir: Annotated[Path, Field(description="Folder with active.json and <name>/<version>/.")] = Path("models")
    device: Annotated[Device, Field(description="Where the model runs; auto takes a GPU if one is there.")] = "auto"
    gpus: Annotated[
        tuple[Annotated[int, Field(ge=0, le=63)], ...],
        NoDecode,
        Field(min_length=1, description="Which GPUs, if any are used, as in 0,1: one worker for each."),
    ] = (0,)
    cuda_engine: Annotated[CudaEngine, Field(description="What runs the model on a GPU.")] = "cuda"
    cpu_engine: Annotated[
        CpuEngine, Field(description="What runs the model on a CPU; auto takes OpenVINO if it is installed.")
    ] = "onnxruntime"
    engine_cache_dir: Annotated[
        Path | None, Field(description="Folder where TensorRT keeps what it has built, for the next start.")
    ] = None
    precision: Annotated[
        Precision,
        Field(description="Which variant of the model runs; model is the one its card is about. bf16 needs OpenVINO."),
    ] = "model"
    resident: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="More models to keep loaded, as in efficientnet-b3@1.0.0,other@1.0.0; asked by ?model=."),
    ] = ()
    inference_threads: Annotated[
        int, Field(ge=0, le=256, description="CPU threads of the model; 0 = the CPUs this process may use.")
    ] = 0
    decode_threads: Annotated[
        int, Field(ge=0, le=256, description="Threads that decode pictures; 0 = the CPUs this process may use.")
    ] = 0
    max_batch: Annotated[
        int, Field(ge=0, le=256, description="Most pictures in one batch; 0 = measured on a CPU, 32 on a GPU.")
    ] = 0
    max_wait_ms: Annotated[
        float, Field(ge=0, le=1000, description="How long a picture may wait for others to join its batch.")
    ] = 0
    queue_limit: Annotated[
        int, Field(ge=1, le=65536, description="Pictures admitted at once; more are answered 429.")
    ] = 1024
    queue_limit_bytes: Annotated[
        int, Field(ge=1024, le=1024 * 1024 * MIB, description="Bytes of uploads held at once; more are answered 429.")
    ] = 1024 * MIB
    request_timeout_s: Annotated[
        float, Field(ge=0.1, le=3600, description="Time for an answer once the upload is read, then 504.")
    ] = 30
    run_timeout_s: Annotated[
        float, Field(ge=0.1, le=3600, description="Longest run of a batch; after it the service is no longer alive.")
    ] = 60
    max_request_bytes: Annotated[
        int, Field(ge=1024, le=4096 * MIB, description="Largest request body; more is answered 413.")
    ] = 256 * MIB
    # While JSON is parsed, nothing else runs: measured, 14 MiB of empty lists take 2 s.
    max_json_bytes: Annotated[
        int, Field(ge=1024, le=4096 * MIB, description="Most JSON in one /v2 request; binary data is not counted.")
    ] = 4 * MIB
    upload_timeout_s: Annotated[
        float, Field(ge=1, le=86_400, description="Time for a whole request body to arrive, then 504.")
    ] = 300
    min_upload_bytes_per_s: Annotated[
        int, Field(ge=0, le=1024 * MIB, description="Slowest upload, over each REQUEST_TIMEOUT_S; else 504.")
    ] = 1024
    header_timeout_s: Annotated[
        float, Field(ge=0.1, le=600, description="Time for a request's headers to arrive, then 408.")
    ] = 10
    max_header_bytes: Annotated[
        int, Field(ge=1024, le=16 * MIB, description="Most bytes of a request's headers; more is answered 431.")
    ] = 32 * 1024
    max_images_per_request: Annotated[
        int, Field(ge=1, le=65536, description="Most pictures in one request; at most the queue limit.")
    ] = 512
    # Pillow itself warns of a decompression bomb from 89,478,485 pixels on.
    max_image_pixels: Annotated[
        int, Field(ge=256, le=89_478_485, description="Most pixels of one picture, width times height.")
    ] = 4096 * 4096
    drain_timeout_s: Annotated[
        int, Field(ge=1, le=600, description="How long accepted work may still run after a stop.")
    ] = 30
    exit_when_hung: Annotated[
        bool, Field(description="End the process, once it is not alive, for a supervisor that does not look.")
    ] = False
    drain_delay_s: Annotated[
        float, Field(ge=0, le=600, description="How long to answer on, not ready, after a stop was asked for.")
    ] = 0
    audit_log: Annotated[
        Path | None, Field(description="File for the audit log: one line for each answered picture; none = off.")
    ] = None
    audit_fsync: Annotated[
        bool, Field(description="Whether a line must be on the disk, safe from a loss of power, before its answer.")
    ] = True
    audit_on_failure: Annotated[
        AuditFailure, Field(description="What to do if the audit log can't be written: refuse with 503, or answer.")
    ] = "refuse"
    audit_max_bytes: Annotated[
        int, Field(ge=4096, le=1024 * 1024 * MIB, description="Size at which the audit log's file is rotated away.")
    ] = 128 * MIB
    baseline_review_share: Annotated[
        float | None, Field(ge=0, le=1, description="Expected share of answers to review; none = the model's report.")
    ] = None
    baseline_all_share: Annotated[
        float | None, Field(ge=0, le=1, description="Expected share of the label ALL; none = the model's report.")
    ] = None
    log_level: Annotated[LogLevel, Field(description="Least severe messages to log.")] = "info"
    log_format: Annotated[LogFormat, Field(description="Lines for people, or JSON objects for machines.")] = "text"
    traces: Annotated[
        Traces, Field(description="Send OpenTelemetry traces; OTEL_EXPORTER_OTLP_ENDPOINT says where to.")
    ] = "off"

    @field_validator("gpus", "resident", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = unknown_variables(os.environ)
        if unknown:
            raise ValueError("; ".join(unknown))
        if self.max_images_per_request > self.queue_limit:
            raise ValueError(
                f"{PREFIX}MAX_IMAGES_PER_REQUEST ({self.max_images_per_request}) is above "
                f"{PREFIX}QUEUE_LIMIT ({self.queue_limit}): such a request could never be admitted"
            )
        if self.max_request_bytes > self.queue_limit_bytes:
            raise ValueError(
                f"{PREFIX}MAX_REQUEST_BYTES ({self.max_request_bytes}) is above "
                f"{PREFIX}QUEUE_LIMIT_BYTES ({self.queue_limit_bytes}): such a request could never be admitted"
            )
        return self


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Describe each ``LEUKOSCOPE_*`` name that is no setting, with the names that come near."""
    known = {PREFIX + field.upper() for field in Settings.model_fields}
    allowed = known | {CLIENT_KEY_VARIABLE}
    strange = sorted(name for name in names if name.upper().startswith(PREFIX) and name.upper() not in allowed)
    return [f"{name} is not a setting{_near(name.upper(), known)}" for name in strange]


def explain(error: ValidationError) -> list[str]:
    """Say in one line per fault which variable is wrong and why."""
    lines = []
    for fault in error.errors(include_url=False):
        message = fault["msg"].removeprefix("Value error, ")
        if fault["loc"]:
            message = f"{PREFIX}{str(fault['loc'][0]).upper()}={fault['input']}: {message}"
        lines.append(message)
    return lines


def describe() -> list[tuple[str, str, str, str]]:
    """Return (variable, default, allowed values, meaning) for each setting, in order."""
    return [
        (PREFIX + name.upper(), _default(field), _allowed(field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def _near(name: str, known: Iterable[str]) -> str:
    # Without the prefix, which makes any two names look alike.
    stems = sorted(variable.removeprefix(PREFIX) for variable in known)
    near = difflib.get_close_matches(name.removeprefix(PREFIX), stems, n=3, cutoff=0.7)
    return f" (did you mean {' or '.join(PREFIX + stem for stem in near)}?)" if near else ""


def _default(field: FieldInfo) -> str:
    if field.default in (None, "", ()):
        return "none"
    if isinstance(field.default, tuple):
        return ",".join(str(part) for part in field.default)
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def _allowed(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    if annotation is bool:
        return "true|false"
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if get_origin(annotation) is tuple:
        return "separated by commas"
    low = next((bound.ge for bound in field.metadata if hasattr(bound, "ge")), None)
    high = next((bound.le for bound in field.metadata if hasattr(bound, "le")), None)
    return "" if low is None else f"{low}..{high}"
