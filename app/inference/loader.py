"""From a verified folder to sessions that are warm, tuned and proven on every device."""

import base64
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core import imaging
from app.core.errors import (
    DeviceMemoryError,
    GoldenMismatchError,
    ImageError,
    InferenceError,
    ModelIntegrityError,
    ProviderError,
)
from app.core.parts import Preprocessing
from app.core.spec import MODEL_FILE, Manifest
from app.inference.gently import optimised
from app.inference.opening import open_session as open_by_placement
from app.inference.providers import CPU_PROVIDER, GPU_PROVIDERS, OPENVINO_PROVIDER, TENSORRT_PROVIDER, Placement
from app.inference.registry import Installed, ModelRef, Registry
from app.inference.session import Session, batch_buckets
from app.inference.shares import SharingSession

Errand = Callable[[], object]
RunOn = Callable[[int, Errand], None]
"""Runs an errand on the worker of an index, between two batches, and raises what it raised."""

OpenSession = Callable[[Path, Manifest, Placement], Session]

_LOG: Final = logging.getLogger(__name__)
_TUNING_RUNS: Final = 3
# A batch costs the service some milliseconds beside the model, so a larger one may be this much slower per picture:
# with 16 connections and efficientnet-b3, batches of 4 gave 1.1 times as many answers as single pictures.
_HARDLY_SLOWER: Final = 1.03
_LONGEST_S: Final = 0.06  # of a batch, for the first of its pictures waits for the last
# What an engine rounds to by itself, and how far a logit may then be from the golden one.
_BY_ENGINE: Final = {("fp16", TENSORRT_PROVIDER): 0.05, ("bf16", OPENVINO_PROVIDER): 0.25}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A verified, warm model that has reproduced its golden output on each device.

    Attributes:
        installed: Its folder.
        manifest: The folder's manifest.
        sessions: One for each worker, in their order.
        precision: Of the arithmetic that really runs, such as ``fp32``.
    """

    installed: Installed
    manifest: Manifest
    sessions: tuple[Session, ...]
    precision: str

    @property
    def session(self) -> Session:
        """The first worker's session; all are alike but for their device."""
        return self.sessions[0]


class Loader:
    """Loads models onto the devices that the service uses."""

    def __init__(
        self, registry: Registry, placements: Sequence[Placement], open_session: OpenSession = open_by_placement
    ) -> None:
        """Make a loader.

        Args:
            registry: Where models are.
            placements: One for each worker; equal ones share a session.
            open_session: Makes a session of a graph.
        """
        self._registry = registry
        self._placements = placements
        self._open_session = open_session
        self._best_batches: dict[tuple[str, int, str], int] = {}

    def load(self, ref: ModelRef, run_on: RunOn, *, gently: bool = False) -> LoadedModel:
        """Load a model until it is ready to answer. Takes seconds; call it in a thread.

        Args:
            ref: Which one.
            run_on: Takes what needs the device to the device's own thread, so that warming up a new
                model waits its turn among the batches of the old one.
            gently: Whether another model serves meanwhile on these CPUs, and must not be slowed down.

        Raises:
            ModelError: It is not installed, a file is missing or changed, the graph does not fit the
                manifest, the wrong provider runs, or the golden output is not reproduced.
        """
        installed = self._registry.verified(ref)
        assert installed.manifest is not None  # noqa: S101 - `verified` has read it
        opened: dict[Placement, Session] = {}  # workers on the same device share a session
        for worker, placement in enumerate(self._placements):
            if placement not in opened:
                opened[placement] = self._open(
                    installed.manifest, ref, placement, partial(run_on, worker), gently=gently
                )
        sessions = [opened[placement] for placement in self._placements]
        if len({session.provider for session in sessions}) > 1:
            raise ProviderError(f"The GPUs run differently: {[session.provider for session in sessions]}.")
        manifest = installed.manifest.in_precision(self._placements[0].precision)
        return LoadedModel(installed, manifest, tuple(sessions), self._precision(manifest, sessions))

    def self_tests(self, model: LoadedModel) -> list[Callable[[], None]]:
        """Return, for each worker, what raises if its session no longer reproduces the golden output."""
        manifest = model.manifest
        return [
            partial(check_golden, manifest, session, *golden_of(manifest, placement.precision, session.provider))
            for placement, session in zip(self._placements, model.sessions, strict=True)
        ]

    def _open(
        self,
        manifest: Manifest,
        ref: ModelRef,
        placement: Placement,
        run: Callable[[Errand], None],
        *,
        gently: bool = False,
    ) -> Session:
        variant = manifest.variants.get(placement.precision)
        spec = manifest.preprocessing
        path = self._registry.folder(ref) / (variant.file if variant else MODEL_FILE)
        with optimised(path) if gently else nullcontext() as graph:
            session = self._open_session(graph or path, manifest, replace(placement, optimised=graph is not None))
        if placement.precision != "model" and variant is None and not _by_engine(placement.precision, session.provider):
            raise ModelIntegrityError(
                f"{ref} has no variant {placement.precision}; it has {sorted(manifest.variants) or 'none'}, "
                f"and {session.provider} does not make one."
            )
        tuned = placement.max_batch == 0 and session.provider not in GPU_PROVIDERS
        known_batch = self._best_batches.get(_network(manifest, placement))
        if known_batch is not None and tuned:
            session.max_batch = known_batch
        alone = session.narrow if isinstance(session, SharingSession) and placement.callers > 1 else session
        # ONNX Runtime has nothing to learn from a larger batch on a CPU.
        largest = min(session.max_batch, placement.threads) if session.provider == CPU_PROVIDER else session.max_batch
        try:
            warm_up(session, spec, run, largest)
            if alone is not session:
                warm_up(alone, spec, run, 1)
        except (InferenceError, DeviceMemoryError) as error:
            # Some CUDA libraries are looked for only when the first batch runs.
            if session.provider not in GPU_PROVIDERS:
                raise
            if placement.device == "cuda":
                raise ProviderError(f"The GPU can't run the model: {error.__cause__}") from error
            _LOG.warning("The GPU can't run the model, the CPU does: %s", error.__cause__)
            return self._open(manifest, ref, replace(placement, device="cpu"), run)
        # Which part of a sharing session answers depends on the moment, so each is proven.
        for part in (session.wide, session.narrow) if isinstance(session, SharingSession) else (session,):
            run(partial(check_golden, manifest, part, *golden_of(manifest, placement.precision, session.provider)))
        if known_batch is None and tuned:
            # Measured once for a network: a later version of it, loaded under traffic, would be measured worse.
            # One of several callers has one thread; a caller that is the only one has all of them, which do well at
            # a single picture while nothing else runs, as now, and badly under load.
            at_least = 1 if placement.callers > 1 else placement.threads
            session.max_batch = best_batch(alone, spec, run, at_least=at_least)
            self._best_batches[_network(manifest, placement)] = session.max_batch
        return session

    def _precision(self, manifest: Manifest, sessions: Sequence[Session]) -> str:
        placement = self._placements[0]
        other = placement.precision in manifest.variants or _by_engine(placement.precision, sessions[0].provider)
        return placement.precision if other else manifest.precision


def golden_of(manifest: Manifest, precision: str, provider: str) -> tuple[tuple[float, ...], float]:
    """Return the logits that a model must reproduce, and how closely.

    Args:
        manifest: Of the model.
        precision: The setting.
        provider: What really runs it.
    """
    variant = manifest.variants.get(precision)
    if variant is not None:
        return variant.logits, variant.atol
    golden = manifest.golden
    return golden.logits, max(golden.atol, _by_engine(precision, provider))


def _by_engine(precision: str, provider: str) -> float:
    """Return how far logits may be off because the engine rounds by itself; 0 if it does not."""
    return _BY_ENGINE.get((precision, provider), 0)


def _network(manifest: Manifest, placement: Placement) -> tuple[str, int, str]:
    return manifest.architecture, manifest.preprocessing.size_px, placement.precision


def warm_up(session: Session, spec: Preprocessing, run: Callable[[Errand], None], largest: int) -> None:
    """Run every shape up to a batch of `largest`, each on its own turn, so that no request pays for a first time."""
    for batch in batch_buckets(largest):
        for side_px in spec.sides_px:
            run(partial(session.run, _squares(batch, side_px, spec)))


def best_batch(session: Session, spec: Preprocessing, run: Callable[[Errand], None], *, at_least: int = 1) -> int:
    """Measure up to which batch the pace of a picture holds.

    On a CPU that is no matter of course: a larger batch may fall out of the cache. Nobody waits for a batch to fill,
    so it is only what waits anyway that goes together.

    Args:
        session: Warm.
        spec: Its preprocessing; of several windows a middle one is measured.
        run: Runs an errand where the session's batches run.
        at_least: The smallest limit that is tried.

    Returns:
        The largest of 1..`session.max_batch` that is hardly slower per picture than the fastest, and takes no longer
        than a wait that nobody notices.
    """
    seconds: list[float] = []

    def timed(images: NDArray[np.uint8]) -> None:
        began_s = time.perf_counter()
        session.run(images)
        seconds.append(time.perf_counter() - began_s)

    side_px = spec.sides_px[(len(spec.sides_px) - 1) // 2]
    paces: dict[int, float] = {}
    for batch in batch_buckets(session.max_batch):
        if batch < min(at_least, session.max_batch):
            continue
        seconds.clear()
        for _ in range(_TUNING_RUNS):
            run(partial(timed, _squares(batch, side_px, spec)))
        paces[batch] = min(seconds) / batch
    enough_s = min(paces.values()) * _HARDLY_SLOWER
    short = {batch: pace_s for batch, pace_s in paces.items() if batch * pace_s <= _LONGEST_S}
    return max((batch for batch, pace_s in short.items() if pace_s <= enough_s), default=min(paces))


def _squares(batch: int, side_px: int, spec: Preprocessing) -> NDArray[np.uint8]:
    """Pictures of a white square, which is looked at in a window of its size."""
    pictures = np.zeros((batch, spec.size_px, spec.size_px, 3), dtype=np.uint8)
    pictures[:, :side_px, :side_px] = 255
    return pictures


def check_golden(manifest: Manifest, session: Session, expected: Sequence[float], atol: float) -> None:
    """Reproduce the stored output from the stored picture, through the same code as any request.

    Args:
        manifest: With the picture and the hash of its preprocessed bytes.
        session: What is to be proven.
        expected: Its logits.
        atol: Largest absolute difference of a logit that passes.

    Raises:
        GoldenMismatchError: Decoding, preprocessing or the model gives something else.
    """
    golden = manifest.golden
    try:
        image = imaging.decode(base64.b64decode(golden.image_png, validate=True))
    except (TypeError, ValueError, ImageError) as error:
        raise GoldenMismatchError(f"{manifest.name}: the golden picture can't be read: {error}") from error
    array = imaging.preprocess(image, manifest.preprocessing)
    if hashlib.sha256(array.tobytes()).hexdigest() != golden.input_sha256:
        raise GoldenMismatchError(
            f"{manifest.name}: the golden picture is preprocessed to other bytes than at export; "
            "is this another version of Pillow?"
        )
    logits = session.run(array[None]).logits[0]
    if not np.allclose(logits, expected, rtol=0, atol=atol):
        raise GoldenMismatchError(
            f"{manifest.name}: the golden output is {list(expected)}, but the model gives {logits.tolist()} "
            f"on {session.provider} (at most {atol} apart is right)"
        )
