"""How many processes train together, and who starts them: Lightning on this machine, torchrun, or Ray Train."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from training.errors import ConfigError
from training.meeting import meet


@dataclass(frozen=True)
class Processes:
    """Data-parallel processes.

    Attributes:
        settings: For `lightning.Trainer`.
        plugins: For `lightning.Trainer`, beside others.
        store: Where they meet, if it must be held until they part.
    """

    settings: dict[str, Any]
    plugins: list[Any] = field(default_factory=list)
    store: Any = None


def processes(wanted: int) -> Processes:
    """Return how this process trains with others.

    Args:
        wanted: How many processes the configuration has, over all machines. The effective batch
            depends on it, so the run's folder remembers it, and nobody may start another number.

    Raises:
        ConfigError: torchrun has started another number.
        RunError: Not all processes that torchrun has started have come.
    """
    if TorchElasticEnvironment.detect():
        found = _of_torchrun(wanted, os.environ)
        return dataclasses.replace(found, store=meet(os.environ))
    return Processes({"devices": wanted, "strategy": "ddp" if wanted > 1 else "auto"})


def _of_torchrun(wanted: int, variables: Mapping[str, str]) -> Processes:
    world, local = int(variables["WORLD_SIZE"]), int(variables["LOCAL_WORLD_SIZE"])
    check_number(wanted, world, "torchrun")
    if world % local:
        raise ConfigError(f"torchrun has {local} of {world} processes here; start the same number on each machine")
    return Processes({"devices": local, "num_nodes": world // local, "strategy": "ddp"})


def check_number(wanted: int, started: int, by: str) -> None:
    """Raise a `ConfigError` if another number of processes was started than the configuration has."""
    if wanted != started:
        raise ConfigError(
            f"{by} has started {started} processes, but fit.devices is {wanted}: give --set fit.devices={started}, "
            "and mind that fit.batch_size is that of each"
        )
