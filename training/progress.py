"""The progress of a run: a bar with epoch, images a second and time left, and a line of figures for each epoch."""

from typing import Any, Final

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

# What an epoch's line says of the figures that there are.
_WORDS: Final = {
    "train_loss": "loss",
    "train_accuracy": "accuracy",
    "val_loss": "validation loss",
    "val_accuracy": "validation accuracy",
    "val_auroc": "validation AUROC",
}


class ImageSpeed(ProgressColumn):
    """Shows how many images a second are learnt from."""

    def render(self, task: Task) -> Text:
        """Return the speed as text."""
        steps = task.finished_speed or task.speed
        return Text("" if steps is None else f"{steps * task.fields['batch_size']:.0f} images/s")


class CellProgress(ProgressBar):
    """One bar for the whole run, narrow enough for 80 columns; the epochs' figures stay above it.

    Args:
        batch_size: Images a step, over all processes.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self._batch_size = batch_size
        self._shown = True
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            ImageSpeed(),
            TimeRemainingColumn(compact=True),
        )

    def disable(self) -> None:
        """Show nothing: Lightning calls it in all processes but one."""
        self._shown = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002  a hook
        """Show the bar, from where a resumed run stands."""
        self._task = self._progress.add_task(
            "Training",
            total=int(trainer.estimated_stepping_batches),
            completed=trainer.global_step,
            batch_size=self._batch_size,
        )
        if self._shown:
            self._progress.start()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Move on by a step."""
        epoch = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._progress.update(self._task, completed=trainer.global_step, description=epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002  a hook
        """Show the epoch's figures."""
        metrics = trainer.callback_metrics
        shown = ", ".join(f"{words} {float(metrics[name]):.4f}" for name, words in _WORDS.items() if name in metrics)
        if self._shown and shown:
            line = f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {shown}"
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002  a hook
        """Leave the terminal as it was, also after an error."""
        self._progress.stop()
