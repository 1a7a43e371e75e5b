"""What goes between those who decode and the engines of a cluster."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.core.errors import LeukoscopeError
from app.inference.outputs import Outputs
from app.inference.registry import ModelRef

Results = list[Outputs | LeukoscopeError]
"""For each picture what the model says of it, without a batch axis, or why there is nothing."""


@dataclass(frozen=True, slots=True)
class Order:
    """What shall be done with some pictures.

    Attributes:
        ref: The model that they are preprocessed for.
        left_s: Seconds after which no answer is of use. Not a time: clocks differ between machines.
        log: What the request's log lines carry, its id among them.
    """

    ref: ModelRef
    left_s: float
    log: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Described:
    """A model as an engine has loaded it.

    Attributes:
        provider: What really runs it.
        max_batch: Most pictures that run at once.
        precision: Of the arithmetic that really runs.
    """

    provider: str
    max_batch: int
    precision: str


class Engines(Protocol):
    """All engines of the cluster together."""

    async def run(self, order: Order, images: NDArray[np.uint8]) -> Results:
        """Have pictures computed by whichever engine has least to do; cancelled here, they are cancelled there.

        Args:
            order: What is to be done.
            images: Shape ``(n, size_px, size_px, 3)``; n is at most the model's `Described.max_batch`.

        Raises:
            QueueFullError: The engine has no room.
            DeadlineExceededError: The order's time is over.
            InferenceError: One engine after another died over it.
            LeukoscopeError: The engine can't run the model.
        """

    async def load(self, ref: ModelRef) -> Described:
        """Have every engine that runs now load a model, and prove it.

        Raises:
            ModelError: One of them can't; those that can may go on with it.
            NotReadyError: No engine runs.
        """

    async def adopted(self, ref: ModelRef) -> None:
        """Tell all engines, and all others who decode, that a loaded model serves from now on."""

    async def ping(self) -> None:
        """Return if an engine answers.

        Raises:
            NotReadyError: None does.
        """
