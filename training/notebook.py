"""The learning-rate rule of the B3 notebook: which epochs were better, when to halve, when to stop."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import lightning as L
from lightning.pytorch.callbacks import Callback

_ENOUGH_ACCURACY: Final = 0.9
_FALLS_BEFORE_STOP: Final = 3


@dataclass
class NotebookRule:
    """Watches training accuracy while it is under .9, then validation loss.

    After one epoch without improvement the learning rate falls; the third fall in a row without an
    improvement between them ends the run.

    Attributes:
        best_accuracy: Highest training accuracy so far.
        best_loss: Lowest validation loss so far.
        falls: Since the last improvement.
    """

    best_accuracy: float = 0.0
    best_loss: float = float("inf")
    falls: int = 0

    def improved(self, accuracy: float, loss: float) -> bool:
        """Take the figures of an epoch, and say whether its weights are the best so far.

        Args:
            accuracy: Of the training cells during the epoch, 0..1.
            loss: Of the validation cells after it.

        Returns:
            False if the learning rate has to fall; `stop` then says whether the run ends.
        """
        better = accuracy > self.best_accuracy if accuracy < _ENOUGH_ACCURACY else loss < self.best_loss
        self.best_accuracy = max(self.best_accuracy, accuracy)
        self.best_loss = min(self.best_loss, loss)
        self.falls = 0 if better else self.falls + 1
        return better

    @property
    def stop(self) -> bool:
        """Whether the learning rate fell often enough in vain."""
        return self.falls >= _FALLS_BEFORE_STOP


class NotebookSchedule(Callback):
    """Applies the rule after each epoch, and writes the best weights.

    Args:
        factor: Of a fall; the notebook's is .5.
        best: Checkpoint to write after each improvement.
    """

    def __init__(self, factor: float, best: Path) -> None:
        self._factor, self._best = factor, best
        self._rule = NotebookRule()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002  a hook
        """Judge the epoch."""
        figures = trainer.callback_metrics
        if self._rule.improved(float(figures["train_accuracy"]), float(figures["val_loss"])):
            trainer.save_checkpoint(self._best)
            return
        for group in trainer.optimizers[0].param_groups:
            group["lr"] *= self._factor
        trainer.should_stop = trainer.should_stop or self._rule.stop

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know."""
        return asdict(self._rule)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another run's callback stood."""
        self._rule = NotebookRule(**state_dict)
