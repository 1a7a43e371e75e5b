"""`python -m tests.bench.narrow RUN...`: what a network answers in float32, and in bfloat16 with the same weights.

On the run's validation cells, on a processor: how far `fit.precision = "bf16-mixed"` is from what is judged and served.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from training.data.dataset import Data
from training.data.labels import ALL
from training.observer import Observer
from training.run import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; return an exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.narrow", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="of `leukoscope-train fit`, at its end")
    options = parser.parse_args(arguments)
    print("| run | cells | AUROC, float32 | bfloat16 | accuracy, float32 | bfloat16 | same label |")  # noqa: T201 - it is what the command is for
    print("| --- | --- | --- | --- | --- | --- | --- |")  # noqa: T201
    for folder in options.runs:
        run = Run(folder)
        data = run.load_data()
        wide, narrow = (_margins(run, data, narrow=narrow) for narrow in (False, True))
        truth = data.targets[data.split.validation] == ALL
        figures = [
            *(f"{roc_auc_score(truth, margins):.4f}" for margins in (wide, narrow)),
            *(f"{((margins > 0) == truth).mean():.4f}" for margins in (wide, narrow)),
            f"{((wide > 0) == (narrow > 0)).mean():.4f}",
        ]
        print(f"| {folder.name} | {len(truth)} | {' | '.join(figures)} |")  # noqa: T201
    return 0


def _margins(run: Run, data: Data, *, narrow: bool) -> NDArray[np.float64]:
    """What speaks for ALL less what speaks for HEM, for each validation cell."""
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        logits = Observer(run).see(data.inputs, data.split.validation).logits
    return logits[:, ALL] - logits[:, 1 - ALL]


if __name__ == "__main__":
    sys.exit(main())
