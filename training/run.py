"""A run's folder: what is in it, and how a later step reads it again."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.config import DataConfig, FeatureRunConfig, ProbeRunConfig, RunConfig
from training.data.dataset import Data
from training.data.splits import Rows
from training.errors import ConfigError, RunError
from training.origin import CONFIG_FILE
from training.zoo import Classifier, create
from training.zoo.quantised import lay_out
from training.zoo.staged import StagedClassifier

HELD_OUT_FILE: Final = "held_out.npz"
# The name of what is no network (`training.floor`).
FLOOR: Final = "floor"
WEIGHTS_FILE: Final = "weights.safetensors"
PREDICTIONS_FILE: Final = "predictions.parquet"
REPORT_FILE: Final = "report.json"
PAGE_FILE: Final = "report.html"
NOVELTY_FILE: Final = "novelty.safetensors"
CHECKPOINTS: Final = "checkpoints"
HISTORY_FILE: Final = "logs/metrics.csv"
_SPLIT: Final = "split_sha256"
_ENDED_FILE: Final = "ended.json"


@dataclass(frozen=True)
class HeldOut:
    """What layers that did not see a cell's subject say of it.

    Attributes:
        rows: Of the labelled cells of the index, in order.
        logits: Shape ``(rows, 2)``.
    """

    rows: Rows
    logits: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    folder: Path

    def start(self, config: DataConfig, index: Path, split_sha256: str) -> None:
        """Make the folder, or check that it belongs to the same configuration, index and split.

        A folder where nothing was learnt, for its run could not start, may take another configuration. Licences
        change nothing that is learnt, and may always be stated anew.

        Args:
            config: Of the run.
            index: Made by ``leukoscope-train index``.
            split_sha256: Which picture is in which part (`training.data.splits.Split.sha256`).

        Raises:
            RunError: The folder belongs to another configuration or index, or the index has changed.
        """
        settings = {"config": config.model_dump(mode="json"), "index": str(index.resolve())}
        file = self.folder / CONFIG_FILE
        learnt = file.exists() and (self.is_finished or any((self.folder / CHECKPOINTS).glob("*.ckpt")))
        if learnt:
            earlier = _read_settings(file, type(config))
            split = earlier.pop(_SPLIT, split_sha256)
            # First: another configuration may split otherwise, and then it is not the index that has changed.
            if _without_licences(earlier) != _without_licences(settings):
                raise RunError(
                    f"{self.folder} belongs to a run with another configuration or index; name another folder"
                )
            self._check_split(split, split_sha256)
        self.folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".part{os.getpid()}")
        part.write_text(json.dumps(settings | {_SPLIT: split_sha256}, indent=2) + "\n", encoding="utf-8")
        part.replace(file)

    def config(self) -> RunConfig | ProbeRunConfig:
        """Return the run's configuration.

        Raises:
            RunError: The folder is no run that made a classifier.
        """
        return classifier_config(self._settings()["config"])

    def any_config(self) -> DataConfig | None:
        """Return the configuration of a run of any kind; None if this folder is none."""
        try:
            tables = json.loads((self.folder / CONFIG_FILE).read_text(encoding="utf-8"))["config"]
            return FeatureRunConfig.model_validate(tables) if "distil" in tables else classifier_config(tables)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def index(self) -> Path:
        """Return the index that the run was made from."""
        return Path(str(self._settings()["index"]))

    def load_data(self) -> Data:
        """Return the run's data, as it was split.

        Raises:
            RunError: The index has changed, and so has the split: what was learnt from may be in the test part.
            DataError: The index or a picture can't be read.
        """
        data = Data.load(self.index(), self.config(), self.cache())
        now = data.split.sha256(data.cells)
        # Runs of earlier versions do not say how they were split.
        self._check_split(self._settings().get(_SPLIT, now), now)
        return data

    def cache(self) -> Path:
        """Return the folder of decoded arrays, which neighbouring runs share."""
        return self.folder.parent / "cache"

    def last_checkpoint(self) -> Path | None:
        """Return the checkpoint to resume from, if there is one."""
        file = self.folder / CHECKPOINTS / "last.ckpt"
        return file if file.exists() else None

    @property
    def is_finished(self) -> bool:
        """Whether the run has its weights: it was fitted to its end, or ended before."""
        return (self.folder / WEIGHTS_FILE).is_file()

    @property
    def ended_after(self) -> int | None:
        """Epochs after which the run was ended by hand; None if it was not.

        Raises:
            RunError: What says so is damaged.
        """
        file = self.folder / _ENDED_FILE
        if not (self.is_finished and file.is_file()):
            return None
        try:
            return int(json.loads(file.read_text(encoding="utf-8"))["epochs"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file} is damaged; remove {self.folder / WEIGHTS_FILE} and end the run again") from error

    def end(self, state: dict[str, Tensor], epochs: int) -> None:
        """Take weights for those of the whole run, and note after how many epochs."""
        # First the note: weights without one would pass for those of the run's own end.
        (self.folder / _ENDED_FILE).write_text(json.dumps({"epochs": epochs}) + "\n", encoding="utf-8")
        self.save_weights(state)

    def go_on(self) -> None:
        """Forget that the run was ended, if it was, and with that the weights that it was ended with."""
        mark = self.folder / _ENDED_FILE
        if mark.is_file():
            (self.folder / WEIGHTS_FILE).unlink(missing_ok=True)
            mark.unlink(missing_ok=True)

    def save_weights(self, state: dict[str, Tensor]) -> None:
        """Write a network's weights."""
        part = self.folder / f"{WEIGHTS_FILE}.part"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, part)
        part.replace(self.folder / WEIGHTS_FILE)

    def save_held_out(self, held_out: HeldOut, data: Data) -> None:
        """Write what was held out in turn, with the pictures' hashes: an index of more cells has other rows."""
        pictures = np.array(data.cells[held_out.rows]["sha256"].to_list())
        np.savez(self.folder / HELD_OUT_FILE, rows=held_out.rows, sha256=pictures, logits=held_out.logits)

    def held_out(self, data: Data) -> HeldOut | None:
        """Return what was held out in turn, by rows of the run's data; None if the validation part taught nothing."""
        file = self.folder / HELD_OUT_FILE
        if not file.is_file():
            return None
        with np.load(file) as stored:
            if "sha256" not in stored:  # of earlier versions
                return HeldOut(stored["rows"], stored["logits"])
            learnt = np.concatenate([data.split.train, data.split.validation])
            row_of = dict(zip(data.cells[learnt]["sha256"], learnt, strict=True))
            return HeldOut(np.array([row_of[one] for one in stored["sha256"].tolist()]), stored["logits"])

    def load_network(self) -> Classifier:
        """Return the run's network with its best weights, in evaluation mode.

        Raises:
            RunError: The run has not been fitted, or its weights are damaged.
        """
        if not self.is_finished:
            raise RunError(
                f"{self.folder} has no {WEIGHTS_FILE}; fit the run to its end first, or take its last checkpoint "
                "for it with 'leukoscope-train end'"
            )
        config = self.config()
        network = network_of(config)
        if config.model.quantised:
            lay_out(network.backbone)
        try:
            network.load_state_dict(load_file(self.folder / WEIGHTS_FILE))
        except SafetensorError as error:
            raise RunError(f"{self.folder / WEIGHTS_FILE} is damaged ({error}); make the run anew") from error
        return network.eval()

    def _check_split(self, earlier: str, now: str) -> None:
        if earlier != now:
            raise RunError(
                f"{self.folder}: the index has changed since this run began, so that it would be split otherwise; make "
                "the index of the same cells again, or begin another run"
            )

    def _settings(self) -> dict[str, Any]:
        return _read_settings(self.folder / CONFIG_FILE)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Return what Lightning has stored, its tensors still in the file.

    Raises:
        RunError: The file is damaged.
    """
    try:
        stored: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise RunError(f"{file} is damaged; remove it, and the run begins anew") from error
    return stored


def classifier_config(tables: dict[str, Any]) -> RunConfig | ProbeRunConfig:
    """Check the configuration of a run that makes a classifier, of either kind.

    Raises:
        ValueError: It is none.
    """
    return (ProbeRunConfig if "probe" in tables else RunConfig).model_validate(tables)


def _read_settings(file: Path, kind: type[DataConfig] | None = None) -> dict[str, Any]:
    """Read a run's settings, with the defaults of keys that were not there when it was made."""
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        tables = settings["config"]
        config = classifier_config(tables) if kind is None else kind.model_validate(tables)
        return settings | {"config": config.model_dump(mode="json")}
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{file.parent} is no run: {file.name} can't be read ({error})") from error


def _without_licences(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a run learns from and how."""
    config = {name: value for name, value in settings["config"].items() if name != "licence"}
    start = {name: value for name, value in config["model"]["start"].items() if name != "licence"}
    return settings | {"config": config | {"model": config["model"] | {"start": start}}}


def network_of(config: DataConfig) -> Classifier:
    """Build a run's network with random weights.

    Raises:
        ConfigError: There is no network of that name, or its windows do not fit its stages.
    """
    try:
        network = create(
            config.model.network,
            config.input.size_px,
            backbone=config.model.backbone,
            drop_path=config.model.drop_path,
            dropout=config.model.dropout,
            scaling=(config.input.mean, config.input.std),
            activation=config.model.activation,
        )
    except ValueError as error:
        raise ConfigError(f"model.network: {error}") from error
    windows = config.input.windows
    if windows is not None and isinstance(network, StagedClassifier) and windows.step_px % network.stride:
        raise ConfigError(f"input.windows.step_px: a multiple of {network.stride}, not {windows.step_px}")
    return network
