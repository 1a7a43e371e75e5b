"""`python -m tests.bench.learning CONFIG...`: images a second of training steps on a processor.

Steps with and without `training.gradients` take turns in one process, on drawn pictures, so that a busy
machine slows both alike.
"""

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, Dataset

import training.module
from training.config import RunConfig, load_config
from training.data.datamodule import Batch
from training.gradients import QuickGradients
from training.memory import keep_freed_memory
from training.module import CellModule
from training.run import network_of
from training.trainer import hushed

_VARIANTS: Final[dict[str, Callable[[], AbstractContextManager[Any]]]] = {
    "as it is": QuickGradients,
    "PyTorch's gradients": nullcontext,
}
# Steps of each variant that are not counted: memory is new, and libraries choose their kernels.
_WARM_UP: Final = 2


class _Again(Dataset[Batch]):
    """The same batch, some times."""

    def __init__(self, batch: Batch, times: int) -> None:
        self._batch, self._times = batch, times

    def __len__(self) -> int:
        return self._times

    def __getitem__(self, number: int) -> Batch:
        return self._batch


class _Turns(Callback):
    """Changes the variant with every step, and takes its time."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in _VARIANTS}
        self._began = 0.0

    def on_train_batch_start(self, *hook: Any) -> None:
        # The module looks its name up anew in each step.
        setattr(training.module, QuickGradients.__name__, _VARIANTS[self._variant(hook)])
        self._began = time.perf_counter()

    def on_train_batch_end(self, *hook: Any) -> None:
        self.seconds[self._variant(hook)].append(time.perf_counter() - self._began)

    @staticmethod
    def _variant(hook: tuple[Any, ...]) -> str:
        step: int = hook[-1]
        return list(_VARIANTS)[step % len(_VARIANTS)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; return an exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.learning", description=__doc__)
    parser.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="of `leukoscope-train fit`")
    parser.add_argument("--steps", type=int, default=5, help="of each variant, after the first ones")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    print(f"| configuration | {' | '.join(f'{name}: images/s' for name in _VARIANTS)} | ratio |")  # noqa: T201 - it is what the command is for
    print(f"| --- {'| --- ' * (len(_VARIANTS) + 1)}|")  # noqa: T201
    for path in options.configs:
        config = load_config(path, RunConfig)
        seconds = _learn(config, (options.steps + _WARM_UP) * len(_VARIANTS))
        paces = [config.fit.batch_size / statistics.median(took[_WARM_UP:]) for took in seconds.values()]
        print(f"| {path.stem} | {' | '.join(f'{pace:.1f}' for pace in paces)} | {paces[0] / paces[1]:.2f} |")  # noqa: T201
    return 0


def _learn(config: RunConfig, steps: int) -> dict[str, list[float]]:
    """Train on one drawn batch; seconds of each variant's steps."""
    torch.manual_seed(config.seed)
    size, many = config.input.size_px, config.fit.batch_size
    batch = Batch(torch.randint(256, (many, size, size, 3), dtype=torch.uint8), torch.arange(many) % 2)
    turns = _Turns()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with hushed():
        trainer = L.Trainer(
            accelerator="cpu",
            precision=config.fit.precision,
            max_steps=steps,
            callbacks=[turns],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        network = network_of(config).to(memory_format=torch.channels_last)
        trainer.fit(CellModule(network, config), DataLoader(_Again(batch, steps), batch_size=None))
    return turns.seconds


if __name__ == "__main__":
    sys.exit(main())
