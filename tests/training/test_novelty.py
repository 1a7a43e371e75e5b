"""Novelty: the pictures that it is judged by, the score, the threshold, and what a network's stages say."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.core.parts import Preprocessing
from tests.training.conftest import run_config
from training.data.dataset import Data
from training.data.drawn import draw_cell
from training.errors import RunError
from training.novelty.judge import describe_flagged, draw_pictures, judge
from training.novelty.kinds import KINDS, Kind, draw_kind
from training.novelty.photographs import FOR_CHOOSING, FOR_TESTING, FROM_MICROSCOPES
from training.novelty.score import Novelty, choose_threshold
from training.novelty.stages import StageMeans
from training.zoo import create
from training.zoo.efficientnet import stage_features

SPEC = Preprocessing(crop_px=320, size_px=96, resample="bilinear", mean=(127.0,) * 3, std=(128.0,) * 3)
CELLS = [draw_cell(label, seed) for seed in range(3) for label in ("ALL", "HEM")]


def kind(name: str) -> Kind:
    return next(one for one in KINDS if one.name == name)


def equal_weights(count: int) -> np.ndarray:
    return np.full(count, 1 / count)


@pytest.mark.parametrize("one", KINDS, ids=lambda one: one.name)
def test_each_kind_is_drawn_alike_for_a_seed(one: Kind) -> None:
    pictures = draw_kind(one, CELLS, 3, SPEC, seed=5)
    assert pictures.shape == (3, 96, 96, 3)
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures, draw_kind(one, CELLS, 3, SPEC, seed=5))
    assert not np.array_equal(pictures, draw_kind(one, CELLS, 3, SPEC, seed=6))


def test_what_chooses_does_not_test() -> None:
    assert len({one.name for one in KINDS}) == len(KINDS)
    assert {one.use for one in KINDS if one.no_cell} == {"choosing", "testing"}
    assert {one.use for one in KINDS if not one.no_cell} == {"testing"}
    assert not set(FOR_CHOOSING) & {*FOR_TESTING, *FROM_MICROSCOPES}


def test_composed_pictures_show_what_they_say() -> None:
    def border(name: str) -> np.ndarray:
        drawn = draw_kind(kind(name), CELLS, 6, SPEC, seed=0).astype(float)
        edges = (drawn[:, :4].reshape(6, -1), drawn[:, -4:].reshape(6, -1), drawn[:, :, :4].reshape(6, -1))
        return np.asarray(np.concatenate(edges, axis=1).mean(axis=1))

    cell = np.stack([np.array(one.resize((96, 96))) for one in CELLS]).astype(float)
    for pale in ("unsegmented cell", "smear field", "unsegmented cell of another stain"):
        assert border(pale).min() > 100
    for black in ("two cells", "cell out of focus", "cell at a third of its size"):
        assert border(black).max() < 80
    assert draw_kind(kind("two cells"), CELLS, 6, SPEC, seed=0).mean() > 1.3 * cell.mean()
    assert draw_kind(kind("cell at a third of its size"), CELLS, 6, SPEC, seed=0).mean() < 0.5 * cell.mean()
    blank = draw_kind(kind("blank, coloured"), CELLS, 6, SPEC, seed=0)[:, 46:50, 46:50]
    assert (blank == blank[:, :1, :1]).all()


def test_the_score_is_1_for_the_usual_and_grows_with_the_distance() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(12, 12)) * 10.0 ** rng.uniform(-3, 3, size=12)
    values = (rng.normal(size=(4000, 12)) @ mixing + 7).astype(np.float32)
    novelty = Novelty.fit(values, equal_weights(4000))
    assert np.sqrt((novelty.score(values) ** 2).mean()) == pytest.approx(1, abs=0.2)
    centre, spread = values.mean(axis=0), values.std(axis=0)
    steps = np.stack([centre + away * spread for away in (0, 4, 40)])
    scores = novelty.score(steps.astype(np.float32))
    assert scores[0] < 0.05
    assert scores[2] == pytest.approx(10 * scores[1], rel=0.01)
    far = np.full((1, 12), 1e30, dtype=np.float32)
    assert novelty.score(far).tolist() == [1e4]


def test_weights_say_who_counts() -> None:
    rng = np.random.default_rng(0)
    some, others = rng.normal(size=(50, 4)), rng.normal(9, 3, size=(50, 4))
    weights = np.concatenate([equal_weights(50), np.zeros(50)])
    both = Novelty.fit(np.concatenate([some, others]), weights).state_dict()
    for name, alone in Novelty.fit(some, equal_weights(50)).state_dict().items():
        torch.testing.assert_close(both[name], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("values", [np.zeros((5, 3)), np.tile([[0.0, 1, 2]], (5, 1)), np.eye(5, 3)])
def test_channels_that_never_change_do_not_break_it(values: np.ndarray) -> None:
    scores = Novelty.fit(values, equal_weights(5)).score(np.vstack([values, values + 1]).astype(np.float32))
    assert np.isfinite(scores).all()
    assert scores[5:].min() > scores[:5].max()


def test_it_is_kept_in_a_file(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    novelty = Novelty.fit(values, equal_weights(20))
    novelty.save(tmp_path / "novelty.safetensors")
    assert np.array_equal(Novelty.load(tmp_path / "novelty.safetensors").score(values), novelty.score(values))
    with pytest.raises(RunError, match="evaluate the run anew"):
        Novelty.load(tmp_path / "nothing")


def test_the_threshold_stands_a_little_above_nearly_all_cells() -> None:
    cells = np.linspace(0.5, 1.5, 1000)
    threshold = choose_threshold(cells, np.linspace(6, 20, 100))
    assert np.quantile(cells, 0.99) < threshold < 2.5
    assert choose_threshold(cells, np.linspace(0.5, 1.0, 100)) == pytest.approx(np.quantile(cells, 0.99))


def test_the_vector_is_the_means_of_all_stages_but_the_last() -> None:
    torch.manual_seed(0)
    network = create("efficientnet-lite0", 64).eval()
    stages = StageMeans(network.backbone)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        network(images)
        vectors = stages.take()
        maps = stage_features(network.backbone, images)
    expected = torch.cat([maps[index].mean(dim=(2, 3)) for index in (0, 1, 2, 4)], dim=1)
    torch.testing.assert_close(vectors, expected)
    assert vectors.shape == (2, 16 + 24 + 40 + 112)


def test_even_an_untaught_network_tells_a_photograph_from_cells() -> None:
    torch.manual_seed(0)
    network = create("efficientnet-lite0", 96).eval()
    stages = StageMeans(network.backbone)

    def vectors(pictures: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            network(torch.from_numpy((pictures.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2))
            return stages.take().numpy()

    cells = [np.array(draw_cell(label, seed).resize((96, 96))) for seed in range(40) for label in ("ALL", "HEM")]
    seen = vectors(np.stack(cells))
    novelty = Novelty.fit(seen[:60], equal_weights(60))
    usual = novelty.score(seen[60:]).max()
    for name in ("other photographs", "unsegmented cell", "smear field", "checkers"):
        assert novelty.score(vectors(draw_kind(kind(name), CELLS, 4, SPEC, seed=0))).min() > usual, name


@pytest.fixture
def data(drawn_index: Path, tmp_path: Path) -> Data:
    return Data.load(drawn_index, run_config(), tmp_path)


def test_pictures_for_testing_show_no_cell_that_chose(data: Data, drawn_index: Path) -> None:
    pictures = draw_pictures(data, drawn_index.parent, SPEC, 2)
    assert list(pictures) == [one.name for one in KINDS]
    swapped = dataclasses.replace(
        data, split=dataclasses.replace(data.split, validation=data.split.test, test=data.split.validation)
    )
    others = draw_pictures(swapped, drawn_index.parent, SPEC, 2)
    changed = {one.name for one in KINDS if not np.array_equal(pictures[one.name], others[one.name])}
    composed = {"smear field", "unsegmented cell", "photograph with a cell's outline", "smear field of another stain"}
    assert composed <= changed
    assert "photograph" not in changed


def test_the_figures_are_shares_over_the_threshold(data: Data) -> None:
    count = len(data.split.test)
    test = np.where(np.arange(count) < count // 2, 1.0, 9.0).astype(np.float32)
    pictures = {one.name: np.array([0.5, 9, 9, 9], np.float32) for one in KINDS}
    judged = judge(np.ones(len(data.split.validation), np.float32), pictures)
    report = describe_flagged(judged, test > judged["threshold"], data.subjects[data.split.test])
    assert 1 <= report["threshold"] < 9
    assert report["cells_flagged"] == {"validation": 0.0, "test": pytest.approx(1 - count // 2 / count)}
    assert {one["flagged"] for one in report["kinds"]} == {0.75}
    assert report["no_cells_flagged"] == {"choosing": 0.75, "testing": 0.75}
    cells_of = {name: int((data.subjects[data.split.test] == name).sum()) for name in report["subjects"]}
    flagged = sum(share * cells_of[name] for name, share in report["subjects"].items())
    assert flagged == pytest.approx((test == 9).sum())


def test_photographs_are_real_pictures() -> None:
    drawn = draw_kind(kind("other photographs"), CELLS, 4, SPEC, seed=0)
    assert all(Image.fromarray(picture).getcolors(100) is None for picture in drawn)
