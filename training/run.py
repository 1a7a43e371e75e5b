"""A run's folder: what is in it, and how a later step reads it again."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors.torch import load_file, save_file
from torch import Tensor

from training.config import DataConfig, FeatureRunConfig, RunConfig
from training.data.dataset import Data
from training.errors import ConfigError, RunError
from training.zoo import Classifier, create

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "weights.safetensors"
PREDICTIONS_FILE: Final = "predictions.parquet"
REPORT_FILE: Final = "report.json"
PAGE_FILE: Final = "report.html"
NOVELTY_FILE: Final = "novelty.safetensors"
CHECKPOINTS: Final = "checkpoints"


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    folder: Path

    def start(self, config: DataConfig, index: Path) -> None:
        """Make the folder, or check that it belongs to the same configuration and index.

        Raises:
            RunError: The folder belongs to another configuration or index.
        """
        settings = {"config": config.model_dump(mode="json"), "index": str(index.resolve())}
        file = self.folder / CONFIG_FILE
        if file.exists():
            if _read_settings(file, type(config)) != settings:
                raise RunError(
                    f"{self.folder} belongs to a run with another configuration or index; name another folder"
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".part{os.getpid()}")
        part.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        part.replace(file)

    def config(self) -> RunConfig:
        """Return the run's configuration."""
        return RunConfig.model_validate(self._settings()["config"])

    def feature_config(self) -> FeatureRunConfig | None:
        """Return the configuration of a run that taught features; None if this folder is no such run."""
        try:
            settings = json.loads((self.folder / CONFIG_FILE).read_text(encoding="utf-8"))
            return FeatureRunConfig.model_validate(settings["config"])
        except (OSError, ValueError, KeyError):
            return None

    def index(self) -> Path:
        """Return the index that the run was made from."""
        return Path(str(self._settings()["index"]))

    def load_data(self) -> Data:
        """Return the run's data, as it was split."""
        return Data.load(self.index(), self.config(), self.cache())

    def cache(self) -> Path:
        """Return the folder of decoded arrays, which neighbouring runs share."""
        return self.folder.parent / "cache"

    def last_checkpoint(self) -> Path | None:
        """Return the checkpoint to resume from, if there is one."""
        file = self.folder / CHECKPOINTS / "last.ckpt"
        return file if file.exists() else None

    @property
    def is_finished(self) -> bool:
        """Whether the run was fitted to its end."""
        return (self.folder / WEIGHTS_FILE).is_file()

    def save_weights(self, state: dict[str, Tensor]) -> None:
        """Write a network's weights."""
        part = self.folder / f"{WEIGHTS_FILE}.part"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, part)
        part.replace(self.folder / WEIGHTS_FILE)

    def load_network(self) -> Classifier:
        """Return the run's network with its best weights, in evaluation mode.

        Raises:
            RunError: The run has not been fitted.
        """
        if not self.is_finished:
            raise RunError(f"{self.folder} has no {WEIGHTS_FILE}; fit the run to its end first")
        network = network_of(self.config())
        network.load_state_dict(load_file(self.folder / WEIGHTS_FILE))
        return network.eval()

    def _settings(self) -> dict[str, object]:
        return _read_settings(self.folder / CONFIG_FILE, RunConfig)


def _read_settings(file: Path, kind: type[DataConfig]) -> dict[str, object]:
    """Read a run's settings, with the defaults of keys that were not there when it was made."""
    try:
        settings: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
        return settings | {"config": kind.model_validate(settings["config"]).model_dump(mode="json")}
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{file.parent} is no run: {file.name} can't be read ({error})") from error


def network_of(config: DataConfig) -> Classifier:
    """Build a run's network with random weights.

    Raises:
        ConfigError: There is no network of that name.
    """
    try:
        return create(
            config.model.network,
            config.input.size_px,
            backbone=config.model.backbone,
            drop_path=config.model.drop_path,
            dropout=config.model.dropout,
        )
    except ValueError as error:
        raise ConfigError(f"model.network: {error}") from error
