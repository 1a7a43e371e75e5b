"""Solve the last layer of a frozen network: logistic regression on its pooled features.

A linear probe keeps the features that the network came with. With few subjects that beats
fine-tuning, which learns the subjects (Kumar et al. 2022, arXiv:2202.10054, and training/RESULTS.md).
Strength, temperature and review band are chosen by cross-validation over the subjects that are learnt
from, so that every one of them still teaches the layer that is kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from app.core.postprocess import softmax
from training.config import ProbeRunConfig
from training.data.dataset import Data
from training.data.labels import ALL
from training.data.splits import Rows, cut_by_subject
from training.frozen import pooled_features
from training.module import Scaled
from training.quantise import calibration_batches, calibration_cells
from training.run import HeldOut
from training.tables import SplitConfig
from training.trainer import prepare
from training.zoo import Classifier
from training.zoo.quantised import is_quantised, quantise, spread_anew
from training.zoo.staged import StatisticsHead

_MOST_ITERATIONS: Final = 1000


@dataclass(frozen=True)
class Solved:
    """A linear layer behind a standardisation.

    Attributes:
        weight: Of the margin ``logit_ALL - logit_HEM``, shape ``(width,)``.
        bias: Of the margin.
        mean: Subtracted from the features, shape ``(width,)``.
        deviation: The features are divided by it, same shape.
    """

    weight: NDArray[np.float64]
    bias: float
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    def margin(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the margin of features, shape ``(cells, width)``."""
        return np.asarray(((features - self.mean) / self.deviation) @ self.weight + self.bias)


def probe(config: ProbeRunConfig, index: Path, folder: Path) -> float:
    """Solve the last layer on the training and validation parts of a split, and write the run's folder.

    Args:
        config: The run's configuration.
        index: Made by ``leukoscope-train index``.
        folder: The run's folder.

    Returns:
        Cross-entropy of the subjects held out in turn, with the strength that made it least.

    Raises:
        TrainingError: The data, the start weights or the folder are wrong.
    """
    run, data, network = prepare(config, index, folder)
    if config.model.quantised:
        _quantise(network, config, data)
    head = network.head
    assert isinstance(head, StatisticsHead)  # noqa: S101 - the configuration admits no other network
    features = pooled_features(network, config, data, run.cache())
    rows = np.sort(np.concatenate([data.split.train, data.split.validation]))
    margins = {c: held_out(features, data, rows, config.split, strength=c) for c in config.probe.strengths}
    truth = data.targets[rows] == ALL
    losses = {c: _cross_entropy(margin, truth) for c, margin in margins.items()}
    best = min(losses, key=losses.__getitem__)
    run.save_held_out(HeldOut(rows, as_logits(margins[best])), data)
    _put(solve(*examples(features, truth, rows, np.arange(len(rows))), strength=best), head)
    run.save_weights(network.state_dict())
    return losses[best]


def _quantise(network: Classifier, config: ProbeRunConfig, data: Data) -> None:
    """Round the backbone to 8 bits, for the values that it meets on cells of the training part.

    Weights that are of 8 bits already, those of a shipped model, stay as they are.
    """
    spec = config.input.spec()
    module = Scaled(network, spec).eval()
    cells = calibration_cells(data.inputs, data.split.train)
    run = (module(torch.from_numpy(batch)) for batch in calibration_batches(cells, spec))
    (spread_anew if is_quantised(network) else quantise)(network.backbone, run)


def solve(features: NDArray[np.float64], truth: NDArray[np.bool_], *, strength: float) -> Solved:
    """Fit a logistic regression with a squared penalty on standardised features.

    Args:
        features: Shape ``(examples, width)``.
        truth: Whether each is ALL.
        strength: Inverse of the penalty for each example, scikit-learn's C.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0).clip(min=1e-4)
    fitted = LogisticRegression(C=strength, max_iter=_MOST_ITERATIONS, tol=1e-4).fit(
        (features - mean) / deviation, truth
    )
    return Solved(fitted.coef_[0], float(fitted.intercept_[0]), mean, deviation)


def held_out(
    features: NDArray[np.float32], data: Data, rows: Rows, split: SplitConfig, *, strength: float
) -> NDArray[np.float64]:
    """Return the margins of all rows, each by a layer that did not see its subject.

    Args:
        features: Of all cells, shape ``(cells, views, width)``; the first view is the one that is answered.
        data: The run's data.
        rows: What is learnt from and held out in turn, in order.
        split: Into how many parts the subjects are cut.
        strength: See `solve`.
    """
    truth, margins = data.targets[rows] == ALL, np.zeros(len(rows))
    for learnt, held in _cuts(data, rows, split):
        solved = solve(*examples(features, truth, rows, learnt), strength=strength)
        margins[held] = solved.margin(features[rows[held], 0].astype(np.float64))
    return margins


def _cuts(data: Data, rows: Rows, split: SplitConfig) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    for learnt, held in cut_by_subject(data.cells, rows, split):
        yield np.searchsorted(rows, learnt), np.searchsorted(rows, held)


def examples(
    features: NDArray[np.float32], truth: NDArray[np.bool_], rows: Rows, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return all views of the chosen ones of `rows`, shape ``(examples, width)``, and whether each is ALL."""
    views = features.shape[1]
    picked = features[rows[chosen]].reshape(-1, features.shape[2]).astype(np.float64)
    return picked, np.repeat(truth[chosen], views)


def as_logits(margin: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return logits whose difference is the margin, shape ``(cells, 2)``, in the order of the labels."""
    logits = np.empty((len(margin), 2))
    logits[:, ALL], logits[:, 1 - ALL] = margin / 2, -margin / 2
    return logits


def _cross_entropy(margin: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    probability = softmax(as_logits(margin))
    right = np.where(truth, probability[:, ALL], probability[:, 1 - ALL])
    return float(-np.log(right.clip(1e-12)).mean())


def _put(solved: Solved, head: StatisticsHead) -> None:
    with torch.no_grad():
        head.standardise.mean.copy_(torch.from_numpy(solved.mean))
        head.standardise.deviation.copy_(torch.from_numpy(solved.deviation))
        # Half of the margin for one label, and the other half against the other one.
        weight = torch.from_numpy(solved.weight / 2)
        head.logits.weight[ALL], head.logits.weight[1 - ALL] = weight, -weight
        head.logits.bias[ALL], head.logits.bias[1 - ALL] = solved.bias / 2, -solved.bias / 2
