"""Share a batch out over a CPU's threads: each computes whole pictures, instead of all of them parts of each."""

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.inference.session import Outputs, Session

_THREADS_NAME: Final = "inference-share"


class SharingSession:
    """A CPU's session: a lone picture gets all threads; of several, each thread gets its own.

    Threads that share a picture wait for one another after each of its operators, and much longer
    where decoding and answering want the same cores. Threads with pictures of their own meet once a batch.

    Attributes:
        max_batch: As in `Session`.
        provider: As in `Session`.
    """

    def __init__(self, wide: Session, narrow: Session, threads: int) -> None:
        """Make a session of two.

        Args:
            wide: Uses all threads for each call.
            narrow: Uses one thread for each call; its `run` may be called by several threads at once.
            threads: How many, 2 or more.
        """
        self._wide = wide
        self._narrow = narrow
        self._threads = threads
        self.max_batch = wide.max_batch
        self.provider: str = wide.provider

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Compute the model's outputs; see `Session.run`."""
        if len(images) == 1:
            return self._wide.run(images)
        shares = np.array_split(images, min(self._threads, len(images)))
        # Threads for this batch alone: starting them takes less than a hundredth of it, and none has to be
        # ended with the model. Leaving the block waits for all, so that a batch which has failed does not go
        # on behind the next one's back. The caller's thread is one of them.
        with ThreadPoolExecutor(len(shares) - 1, thread_name_prefix=_THREADS_NAME) as pool:
            others = [pool.submit(self._narrow.run, share) for share in shares[1:]]
            first = self._narrow.run(shares[0])
        return Outputs.joined([first, *(other.result() for other in others)])
