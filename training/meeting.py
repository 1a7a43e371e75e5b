"""Where the processes of one attempt of torchrun meet: a store that no earlier attempt has written to.

torchrun keeps one store for all attempts (pytorch/pytorch issue 135712). Whoever starts anew sooner than
the others finds the addresses of processes that are gone, and all wait for one another without an end.
"""

import time
import uuid
from collections.abc import MutableMapping
from datetime import timedelta
from typing import Final

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # documented all the same

from training.errors import RunError

# As long as PyTorch itself waits: another machine may still decode its cells.
_PATIENCE_S: Final = 1800.0
_PAUSE_S: Final = 0.05
_KEPT_BY_TORCHRUN: Final = "TORCHELASTIC_USE_AGENT_STORE"


def meet(variables: MutableMapping[str, str], patience_s: float = _PATIENCE_S) -> Store | None:
    """Let this attempt's first process open a store of its own, and lead all of them there.

    Args:
        variables: The process's environment, as torchrun sets it; ``MASTER_PORT`` becomes the new store's.
        patience_s: How long to wait for the others, seconds.

    Returns:
        The store, which lasts as long as the first process holds it; None where torchrun keeps none for
        several attempts.

    Raises:
        RunError: Not all processes have come.
    """
    if variables.get(_KEPT_BY_TORCHRUN) != "True":
        return None
    host, rank, patience = variables["MASTER_ADDR"], int(variables["RANK"]), timedelta(seconds=patience_s)
    # What earlier attempts have written is still there.
    old = PrefixStore("leukoscope", TCPStore(host, int(variables["MASTER_PORT"]), timeout=patience))
    if rank == 0:
        own = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=patience)
        _lead(old, own, int(variables["WORLD_SIZE"]), patience_s)
    else:
        own = TCPStore(host, _ask(old, rank), timeout=patience)
        own.set(f"here/{rank}", "")
    variables["MASTER_PORT"] = str(own.port)
    return own


def _ask(old: Store, rank: int) -> int:
    """Ask under a word that was never used, so that no earlier attempt's answer can be meant; return the port."""
    word = uuid.uuid4().hex
    old.set(f"asks/{rank}", word)
    return int(old.get(f"answer/{word}"))


def _lead(old: Store, own: TCPStore, world: int, patience_s: float) -> None:
    """Answer whoever has asked, in an earlier attempt too, until all are in the new store."""
    deadline_s = time.monotonic() + patience_s
    while missing := [rank for rank in range(1, world) if not own.check([f"here/{rank}"])]:
        for rank in missing:
            if old.check([f"asks/{rank}"]):
                old.set(f"answer/{old.get(f'asks/{rank}').decode()}", str(own.port))
        if time.monotonic() > deadline_s:
            raise RunError(f"{len(missing)} of {world} processes have not come in {patience_s:g} s")
        time.sleep(_PAUSE_S)
