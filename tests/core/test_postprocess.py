"""From logits to labels, confidences and reviews."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.parts import Novelty, ReviewBand
from app.core.postprocess import LOW_CONFIDENCE, OUT_OF_DISTRIBUTION, postprocess, softmax
from app.core.spec import Manifest
from tests.models import NAME, VERSION


@pytest.fixture(scope="module")
def manifest(models_dir: Path) -> Manifest:
    return dataclasses.replace(Manifest.load(models_dir / NAME / VERSION), temperature=2.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=5), st.floats(0.05, 20))
def test_softmax_is_a_distribution(logits: list[float], temperature: float) -> None:
    values = softmax(np.array(logits), temperature)
    assert values.sum() == pytest.approx(1)
    assert values.min() >= 0
    assert values[int(np.argmax(logits))] == values.max()


def test_temperature_divides_the_logits(manifest: Manifest) -> None:
    prediction = postprocess(np.array([2.0, 0.0]), manifest)
    assert prediction.label == "ALL"
    assert prediction.confidence == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)
    assert prediction.probabilities == {"ALL": prediction.confidence, "HEM": pytest.approx(1 - prediction.confidence)}


def test_labels_follow_the_manifests_order(manifest: Manifest) -> None:
    swapped = dataclasses.replace(manifest, labels=("HEM", "ALL"))
    assert postprocess(np.array([3.0, 0.0]), swapped).label == "HEM"


@pytest.mark.parametrize(
    ("difference", "review"), [(0.0, True), (0.5, True), (-0.5, True), (2.0, False), (-2.0, False)]
)
def test_review_band_is_of_the_probability_of_all(manifest: Manifest, difference: float, review: bool) -> None:
    banded = dataclasses.replace(manifest, review=ReviewBand(low=0.4, high=0.6))
    prediction = postprocess(np.array([difference, 0.0]), banded)
    assert prediction.review is review
    assert prediction.reasons == ((LOW_CONFIDENCE,) if review else ())


@pytest.mark.parametrize(
    ("novelty", "flagged"), [(None, False), (0.0, False), (2.5, False), (2.6, True), (np.inf, True), (np.nan, True)]
)
def test_what_is_too_novel_is_for_a_person_whatever_its_label(
    manifest: Manifest, novelty: float | None, flagged: bool
) -> None:
    scored = dataclasses.replace(manifest, novelty=Novelty(method="for tests", threshold=2.5))
    sure = postprocess(np.array([9.0, 0.0]), scored, novelty)
    assert sure.review is flagged
    assert sure.reasons == ((OUT_OF_DISTRIBUTION,) if flagged else ())
    unsure = postprocess(np.array([0.0, 0.0]), scored, novelty)
    assert unsure.reasons == ((LOW_CONFIDENCE, OUT_OF_DISTRIBUTION) if flagged else (LOW_CONFIDENCE,))


def test_without_a_threshold_nothing_is_too_novel(manifest: Manifest) -> None:
    assert manifest.novelty is None
    assert postprocess(np.array([9.0, 0.0]), manifest, 1e9).reasons == ()
