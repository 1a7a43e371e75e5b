"""What manifest and card say of whose a model's weights, and the cells that it learnt from, are."""

from typing import Final

import polars as pl

from training.config import DataConfig

CNMC: Final = "C-NMC 2019: Gupta & Gupta 2019, The Cancer Imaging Archive, doi:10.7937/tcia.2019.dc64i46r, CC BY 3.0"


def licences(config: DataConfig, cells: pl.DataFrame) -> dict[str, str]:
    """Return the licences, with attribution, of ``weights``, ``start_weights`` and ``data``.

    Args:
        config: Of the run.
        cells: Those of its split: a download of C-NMC has its own licence, cells of one's own the configuration's.
    """
    own = (cells["source"] == "own").to_numpy()
    data = [*([] if own.all() else [CNMC]), *([config.licence.cells] if own.any() else [])]
    return {
        "weights": config.licence.weights,
        "start_weights": config.model.start.licence,
        "data": "; ".join(data),
    }
