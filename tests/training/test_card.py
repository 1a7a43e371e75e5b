"""A card says how a run was fitted, as its configuration has it."""

from pathlib import Path

import pytest

from training.card import _disjoint, _recipe
from training.config import RunConfig, load_config

CONFIGS = Path("training/configs")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "notebook-efficientnet-b3",
            ["40 epochs of Adamax (backbone: learning rate 0.001", "by accuracy on the train"],
        ),
        ("notebook-baseline", ["100 epochs of Adam (backbone: left as it came; head", "the last epoch's weights were"]),
        ("efficientnet-lite0-fine-tuned", ["epochs of AdamW (", "chosen by the cross-entropy on the validation part"]),
    ],
)
def test_the_recipe(name: str, said: list[str]) -> None:
    recipe = _recipe(load_config(CONFIGS / f"{name}.toml", RunConfig))
    for words in said:
        assert words in recipe


def test_the_batch_is_that_of_all_processes() -> None:
    changes = ["fit.devices=4", "fit.batch_size=8"]
    assert ", batch 32, seed" in _recipe(load_config(CONFIGS / "notebook-baseline.toml", RunConfig, changes=changes))


@pytest.mark.parametrize(("kept", "said"), [("best", "Epoch, temperature, "), ("last", "Temperature, ")])
def test_no_epoch_was_chosen_where_the_last_one_is_kept(kept: str, said: str) -> None:
    config = load_config(CONFIGS / "notebook-baseline.toml", RunConfig, changes=[f"fit.keep='{kept}'"])
    assert f" {said}review band" in _disjoint(config, {"leaks": False})
