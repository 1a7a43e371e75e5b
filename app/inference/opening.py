"""Open the session that a placement asks for: on a GPU or a CPU, and there by the engine of choice."""

import importlib.util
import logging
from dataclasses import replace
from pathlib import Path
from typing import Final

from app.core.spec import Manifest
from app.inference.openvino import OpenVinoSession
from app.inference.providers import CPU_PROVIDER, Placement, gpu_count
from app.inference.session import OnnxSession, Session
from app.inference.shares import SharingSession

_LOG: Final = logging.getLogger(__name__)


def open_session(path: Path, manifest: Manifest, placement: Placement) -> Session:
    """Load a graph where and how it shall run; it has not run yet.

    Args:
        path: The graph.
        manifest: What it must look like.
        placement: Where and how it shall run.

    Raises:
        ProviderError: A device, an engine or a precision is demanded and can't be had.
        ModelIntegrityError: The file is no graph, or not one with these inputs and outputs.
    """
    on_cpu = placement.device == "cpu" or (placement.device == "auto" and gpu_count() <= placement.gpu_index)
    if on_cpu and _wants_openvino(placement):
        return _openvino(path, manifest, placement)
    if on_cpu and placement.precision == "int8":
        _LOG.warning(
            "ONNX Runtime computes this model's 8 bits in floats on a CPU, slower than the model itself; "
            "LEUKOSCOPE_CPU_ENGINE=openvino is for it"
        )
    session = OnnxSession.create(path, manifest, placement)
    if session.provider != CPU_PROVIDER or placement.threads == 1:
        return session
    narrow = OnnxSession.create(path, manifest, replace(placement, device="cpu", threads=1))
    return SharingSession(session, narrow, placement.threads, placement.callers)


def _wants_openvino(placement: Placement) -> bool:
    if placement.cpu_engine == "auto":
        return importlib.util.find_spec("openvino") is not None
    return placement.cpu_engine == "openvino"


def _openvino(path: Path, manifest: Manifest, placement: Placement) -> Session:
    wide = OpenVinoSession.create(path, manifest, placement, streams=1)
    if placement.threads == 1:
        return wide
    narrow = OpenVinoSession.create(path, manifest, placement, streams=placement.threads)
    return SharingSession(wide, narrow, placement.threads, placement.callers)
