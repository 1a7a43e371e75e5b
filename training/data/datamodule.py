"""Batches for Lightning: arrays in memory, drawn by a sampler that repeats for a seed and an epoch."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from training.data.dataset import Data
from training.data.splits import Rows


class Batch(NamedTuple):
    """Pictures, shape ``(batch, size, size, 3)``, 0..255, and their classes, shape ``(batch,)``."""

    images: Tensor
    targets: Tensor


class CellDataset(Dataset[Batch]):
    """Some rows of the arrays; fetches a whole batch at a time."""

    def __init__(self, inputs: NDArray[Any], targets: NDArray[np.int64], rows: Rows) -> None:
        self._inputs, self._targets, self._rows = inputs, targets, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = self._rows[indices]
        return Batch(torch.from_numpy(self._inputs[rows]), torch.from_numpy(self._targets[rows]))


class ResidentDataset(Dataset[Batch]):
    """Some rows of arrays that lie in the memory of a device, and are gathered there."""

    def __init__(self, inputs: Tensor, targets: Tensor, rows: Rows) -> None:
        self._inputs, self._targets = inputs, targets
        self._rows = torch.from_numpy(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = self._rows[indices].to(self._inputs.device)
        return Batch(self._inputs[rows], self._targets[rows])


class EpochSampler(Sampler[int]):
    """Draws as many rows as there are, by weight with replacement, or each once without weights.

    The draw of an epoch depends on the seed and the epoch alone, so a resumed run sees what an
    uninterrupted one would have seen. Lightning calls `set_epoch`.

    Args:
        size: Number of rows.
        seed: Of all draws.
        weights: Probability of each row; None takes each row once.
        rank: Of this process; each takes its own part of a draw.
        world: Number of processes.
    """

    def __init__(
        self, size: int, seed: int, weights: NDArray[np.float64] | None, rank: int = 0, world: int = 1
    ) -> None:
        self._size, self._seed, self._weights = size, seed, weights
        self._rank, self._world = rank, world
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose draw comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._size // self._world

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self._seed, self._epoch])
        if self._weights is None:
            drawn = rng.permutation(self._size)
        else:
            drawn = rng.choice(self._size, size=self._size, p=self._weights)
        return iter(drawn[self._rank :: self._world][: len(self)].tolist())


def balanced_weights(targets: NDArray[np.int64], subjects: NDArray[np.str_]) -> NDArray[np.float64]:
    """Weights that draw large subjects less often than their size would have it.

    Args:
        targets: Class of each cell, shape ``(cells,)``.
        subjects: Subject group of each cell, same shape.

    Returns:
        Probabilities, same shape. Each class keeps its share of the cells, so that the network's
        probabilities keep the data's prevalence; within a class a cell's weight is the inverse
        square root of its subject's number of cells.
    """
    _, inverse, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    weights = 1 / np.sqrt(counts[inverse])
    for label in np.unique(targets):
        mine = targets == label
        weights[mine] *= mine.mean() / weights[mine].sum()
    return np.asarray(weights)


class CellData(L.LightningDataModule):
    """Training and validation batches of a split; on a GPU, all arrays lie in its memory.

    Args:
        data: Index, split and arrays.
        batch_size: Of training; others are twice as large.
        seed: Of the order.
        balanced: Whether to draw by `balanced_weights`.
    """

    def __init__(self, data: Data, *, batch_size: int, seed: int = 0, balanced: bool = False) -> None:
        super().__init__()
        self._data, self._batch_size, self._seed, self._balanced = data, batch_size, seed, balanced
        self._resident: tuple[Tensor, Tensor] | None = None

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return shuffled or balanced training batches; a last, smaller batch is left out."""
        data, rows = self._data, self._data.split.train
        weights = balanced_weights(data.targets[rows], data.groups[rows]) if self._balanced else None
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DataLoader(
            self._dataset(rows),
            batch_size=self._batch_size,
            sampler=EpochSampler(len(rows), self._seed, weights, rank, world),
            collate_fn=_as_is,
            drop_last=True,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation batches, in order; with several processes, all of them to each."""
        return self.ordered(self._data.split.validation)

    def ordered(self, rows: Rows) -> DataLoader[Batch]:
        """Return batches of any rows, in their order."""
        return DataLoader(self._dataset(rows), batch_size=2 * self._batch_size, collate_fn=_as_is)

    def _dataset(self, rows: Rows) -> Dataset[Batch]:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type != "cuda":
            return CellDataset(self._data.inputs, self._data.targets, rows)
        if self._resident is None:
            arrays = (self._data.inputs, self._data.targets)
            inputs, targets = (torch.from_numpy(np.array(array)).to(device) for array in arrays)
            self._resident = inputs, targets
        return ResidentDataset(*self._resident, rows)


def _as_is(batch: Any) -> Any:
    """Stand in for a collate function: `CellDataset` fetches whole batches."""
    return batch
