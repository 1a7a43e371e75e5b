"""Figures, calibration and review band against values worked out by hand or by other code."""

import numpy as np
import pytest

from app.core.postprocess import softmax
from training.calibrate import choose_review_band, fit_temperature
from training.metrics import expected_calibration_error, figures, per_subject, subject_bootstrap

TRUTH = np.array([True, True, True, False, False])
PROBABILITY = np.array([0.9, 0.8, 0.3, 0.6, 0.1])


def test_figures_by_hand() -> None:
    result = figures(PROBABILITY, TRUTH)
    assert result["confusion"]["counts"] == [[2, 1], [1, 1]]
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["sensitivity"] == pytest.approx(2 / 3)
    assert result["specificity"] == pytest.approx(1 / 2)
    assert result["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result["weighted_f1"] == pytest.approx((3 * (2 / 3) + 2 * (1 / 2)) / 5)
    assert result["auroc"] == pytest.approx(5 / 6)  # of 6 pairs, only (.3, .6) is the wrong way round
    assert result["brier"] == pytest.approx((0.01 + 0.04 + 0.49 + 0.36 + 0.01) / 5)


def test_calibration_error_by_hand() -> None:
    # One bin: mean confidence .5 + .3, accuracy .5.
    probability, truth = np.array([0.8, 0.8]), np.array([True, False])
    assert expected_calibration_error(probability, truth) == pytest.approx(0.3)
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == pytest.approx(0.0)


def test_per_subject() -> None:
    subjects = np.array(["1", "1", "2", "H1", "H1"])
    rows = {row["subject"]: row for row in per_subject(PROBABILITY, TRUTH, subjects)}
    assert rows["1"] == {
        "subject": "1",
        "label": "ALL",
        "cells": 2,
        "accuracy": 1.0,
        "mean_probability_all": pytest.approx(0.85),
    }
    assert (rows["H1"]["label"], rows["H1"]["accuracy"]) == ("HEM", 0.5)


def test_a_subject_with_cells_of_both_classes_is_told_by_class() -> None:
    rows = per_subject(np.array([0.9, 0.2, 0.4, 0.1]), np.array([True, True, False, False]), np.array(["p"] * 4))
    assert [(row["label"], row["cells"], row["accuracy"]) for row in rows] == [("ALL", 2, 0.5), ("HEM", 2, 1.0)]
    assert [row["mean_probability_all"] for row in rows] == pytest.approx([0.55, 0.25])


def many(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    subjects = np.repeat([f"{'H' if i % 2 else ''}{i}" for i in range(12)], 30)
    truth = np.char.startswith(subjects, "H") == False  # noqa: E712
    habit = np.repeat(rng.normal(0, 1.0, 12), 30)
    probability = 1 / (1 + np.exp(-(2.0 * (truth * 2 - 1) + habit + rng.normal(0, 1.0, 360))))
    return probability, truth, subjects


def test_the_bootstrap_is_over_subjects_and_repeats_for_a_seed() -> None:
    probability, truth, subjects = many()
    first = subject_bootstrap(probability, truth, subjects, seed=1, resamples=200)
    assert first == subject_bootstrap(probability, truth, subjects, seed=1, resamples=200)
    low, high = first["accuracy"]
    value = float(((probability >= 0.5) == truth).mean())
    assert low <= value <= high
    # Were each cell its own subject, the interval would be too narrow.
    alone = np.array([f"{label}{i}" for i, label in enumerate(subjects)])
    narrow = subject_bootstrap(probability, truth, alone, seed=1, resamples=200)["accuracy"]
    assert high - low > narrow[1] - narrow[0]


def test_the_bootstrap_draws_both_classes_where_few_subjects_have_them() -> None:
    probability, truth = np.array([0.9, 0.8, 0.7, 0.6, 0.2]), np.array([True, True, True, True, False])
    interval = subject_bootstrap(probability, truth, np.array(["1", "1", "2", "3", "3"]), seed=1, resamples=50)
    assert interval["auroc"] == interval["specificity"] == [1.0, 1.0]


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 4.0])
def test_the_temperature_undoes_a_known_sharpening(sharpness: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, size=(20_000, 2))
    targets = (rng.random(20_000) < softmax(logits)[:, 1]).astype(np.int64)
    assert fit_temperature(logits * sharpness, targets) == pytest.approx(sharpness, rel=0.05)


def test_outside_the_review_band_answers_are_as_right_as_was_asked() -> None:
    probability, truth, _ = many(3)
    band = choose_review_band(probability, truth, accuracy=0.95, sensitivity=0)
    outside = (probability < band.low) | (probability > band.high)
    right = ((probability >= 0.5) == truth)[outside].mean()
    assert 0.94 <= right < 1
    assert 0 < outside.mean() < 1


def test_the_band_grows_until_enough_blasts_are_found() -> None:
    probability, truth, _ = many(3)
    shifted = probability**1.3  # too few are called ALL
    bands = [choose_review_band(shifted, truth, accuracy=0.5, sensitivity=wanted) for wanted in (0.0, 0.95)]
    assert bands[1].low < bands[0].low
    answered = (shifted < bands[1].low) | (shifted > bands[1].high)
    assert (shifted >= 0.5)[answered & truth].mean() >= 0.94


def test_where_all_is_right_the_band_is_empty() -> None:
    band = choose_review_band(np.array([0.9, 0.1]), np.array([True, False]), accuracy=0.95, sensitivity=0.95)
    assert band.low == band.high == 0.5
