"""The seam between those who decode and validate, and what batches and runs: pictures in, the model's outputs out.

In one process it is a call, and `app.inference.local` is behind it; on Ray Serve it is a deployment handle, and
`app.cluster.remote` is.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Protocol

from app.inference.loader import LoadedModel
from app.inference.outputs import Outputs
from app.inference.registry import ModelRef
from app.inference.room import Coming
from app.inference.session import Session

Follow = Callable[[ModelRef], Awaitable[None]]


class Places(Protocol):
    """Room for the pictures of one request; each gives its place back when it has ended."""

    async def submit(self, picture: Coming) -> Outputs:
        """Have one picture computed and give its place back, whether or not it came.

        Args:
            picture: If it is still being decoded and this call is cancelled, the decoding is, too.

        Returns:
            What the model says of it, without a batch axis.

        Raises:
            ImageError: The decoding's.
            InferenceError: The model failed on this picture's batch.
            DeviceMemoryError: The device has no memory even for this picture alone.
            NotReadyError: The service stopped first.
            QueueFullError: There is no room after all, where the model is.
        """


class Admits(Protocol):
    """Admits pictures: all that a classifier needs of a runner."""

    def reserve(self, images: int, sessions: tuple[Session, ...]) -> AbstractContextManager[Places]:
        """Admit pictures before any work is done for them.

        Args:
            images: How many; all or none are admitted.
            sessions: Of the model that they are for, as it was loaded.

        Raises:
            QueueFullError: There is no room now.
            NotReadyError: The service is draining.
        """


class Runner(Admits, Protocol):
    """Loads models, and runs in batches what it has admitted."""

    @property
    def admitted(self) -> int:
        """Pictures admitted and not yet ended."""

    @property
    def complaint(self) -> str | None:
        """Why nothing can be run now; None if it can."""

    @property
    def alive(self) -> bool:
        """False once nothing but a restart of this process can help."""

    def wait_s(self, images: int) -> float:
        """Estimate when so many of the admitted pictures will have ended, in seconds."""

    def start(self) -> None:
        """Begin; models may be loaded from now on. The event loop runs."""

    def watch(self, active: Callable[[], LoadedModel | None], follow: Follow) -> None:
        """Watch from now on whether what serves can still run.

        Args:
            active: Tells what serves.
            follow: Serves another model, because others that share the folder models/ do.
        """

    async def load(self, ref: ModelRef, *, gently: bool) -> LoadedModel:
        """Load a model until it is ready to answer.

        Args:
            ref: Which one.
            gently: Whether another model serves meanwhile on a CPU, and must not be slowed down.

        Raises:
            ModelError: It can't be served.
        """

    async def adopted(self, ref: ModelRef) -> None:
        """Hear that a loaded model serves from now on in place of another one."""

    async def drain(self, limit_s: float) -> bool:
        """Admit no more, let what is admitted end within `limit_s`, fail the rest, and stop.

        Returns:
            Whether all has ended; if not, a run hangs.
        """
