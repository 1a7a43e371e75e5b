"""How cells are drawn for an epoch."""

import numpy as np
import pytest

from training.data.datamodule import EpochSampler, balanced_weights

TARGETS = np.array([0] * 100 + [0] * 4 + [1] * 25 + [1] * 1)
SUBJECTS = np.array(["1"] * 100 + ["2"] * 4 + ["H1"] * 25 + ["H2"] * 1)


def share(weights: np.ndarray, chosen: np.ndarray) -> float:
    return float(weights[chosen].sum())


def test_classes_keep_their_share_and_large_subjects_lose_some_of_theirs() -> None:
    weights = balanced_weights(TARGETS, SUBJECTS)
    assert share(weights, TARGETS == 0) == pytest.approx(104 / 130)
    assert share(weights, SUBJECTS == "1") / share(weights, SUBJECTS == "2") == pytest.approx(np.sqrt(100 / 4))
    assert share(weights, SUBJECTS == "H1") / share(weights, SUBJECTS == "H2") == pytest.approx(np.sqrt(25))


def test_a_draw_depends_on_seed_and_epoch_alone() -> None:
    weights = balanced_weights(TARGETS, SUBJECTS)

    def draw(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(len(weights), seed, weights)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draw(0, 3) == draw(0, 3)
    assert draw(0, 3) != draw(0, 4)
    assert draw(0, 3) != draw(1, 3)
    assert len(draw(0, 0)) == len(weights)


def test_without_weights_each_cell_comes_once() -> None:
    assert sorted(EpochSampler(50, 0, None)) == list(range(50))
