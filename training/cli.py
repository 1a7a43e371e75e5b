"""The command `leukoscope-train`: index, fit, evaluate, export."""

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from app.core.errors import LeukoscopeError
from app.core.spec import write_active
from training.data.index import INDEX_FILE, build_index
from training.errors import TrainingError

RUNS: Final = Path("runs")
DEFAULT_INDEX: Final = RUNS / INDEX_FILE
_SHOWN_PROBLEMS: Final = 20

app = typer.Typer(
    name="leukoscope-train",
    help="Train, judge and export classifiers of white blood cells (ALL against HEM).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(markup=False, highlight=False, soft_wrap=True)

Start = Annotated[
    Path | None, typer.Option(help="Safetensors file with the start weights, instead of the one that CONFIG names.")
]
IndexFile = Annotated[Path, typer.Option(help="Index file, as made by 'index'.")]
NewRun = Annotated[
    Path | None, typer.Option(help="The run's folder, by default runs/<name>; an interrupted run goes on there.")
]
RunFolder = Annotated[Path, typer.Argument(help="A run's folder, as made by 'fit'.")]


@app.command("index")
def index_command(
    data: Annotated[Path, typer.Argument(help="Folder of a C-NMC download.")],
    out: Annotated[Path, typer.Option(help="Index file to write.")] = DEFAULT_INDEX,
) -> None:
    """Read every cell of DATA and write one table: file, label, subject, fold, size, hash, group."""
    index = build_index(data, out)
    for path, reason in index.problems[:_SHOWN_PROBLEMS]:
        console.print(f"left out: {path}: {reason}", style="yellow")
    if len(index.problems) > _SHOWN_PROBLEMS:
        console.print(f"left out: {len(index.problems) - _SHOWN_PROBLEMS} more", style="yellow")
    out.parent.mkdir(parents=True, exist_ok=True)
    index.cells.write_parquet(out)
    cells = index.cells
    console.print(
        f"{out}: {len(cells)} cells of {cells['subject'].n_unique()} subjects in {cells['group'].n_unique()} groups; "
        f"{int(cells['duplicate'].sum())} repeated pictures, {len(index.problems)} left out",
        highlight=False,
    )


@app.command("distil")
def distil_command(
    config: Annotated[Path, typer.Argument(help="A TOML file such as training/configs/efficientnet-b3-features.toml.")],
    index: IndexFile = DEFAULT_INDEX,
    out: NewRun = None,
    start: Start = None,
) -> None:
    """Teach a grown network its relative's features, with its own activation. No labels are used."""
    from training.config import FeatureRunConfig, load_config
    from training.distil import distil

    settings = load_config(config, FeatureRunConfig, start)
    folder = out or RUNS / settings.name
    loss = distil(settings, index, folder)
    console.print(f"{folder}: unexplained share of the relative's features {loss:.3f}")


@app.command("fit")
def fit_command(
    config: Annotated[Path, typer.Argument(help="A TOML file such as training/configs/efficientnet-b3.toml.")],
    index: IndexFile = DEFAULT_INDEX,
    out: NewRun = None,
    start: Start = None,
) -> None:
    """Train a classifier; run again with the same words to resume."""
    from training.config import RunConfig, load_config
    from training.fit import fit

    settings = load_config(config, RunConfig, start)
    result = fit(settings, index, out or RUNS / settings.name)
    console.print(f"{result.run.folder}: best validation loss {result.best_loss:.4f}")


@app.command("evaluate")
def evaluate_command(run: RunFolder) -> None:
    """Judge a fitted run on subjects that it has not seen, and write report.json."""
    from training.evaluate import evaluate
    from training.run import Run

    report = evaluate(Run(run))
    table = Table("figure", "validation", "test", title=report["split"]["name"])
    for name in ("cells", "weighted_f1", "auroc", "accuracy", "sensitivity", "specificity", "ece"):
        table.add_row(name, *(f"{report[part][name]:.4g}" for part in ("validation", "test")))
    console.print(table)


@app.command("export")
def export_command(
    run: RunFolder,
    version: Annotated[
        str | None, typer.Option(help="Semantic version of the new model; by default one minor version on.")
    ] = None,
    models: Annotated[Path, typer.Option(help="Folder of all models.")] = Path("models"),
    activate: Annotated[
        bool, typer.Option(help="Name it in MODELS/active.json: the service's next start serves it.")
    ] = False,
) -> None:
    """Write MODELS/<name>/<version> with graph, manifest, report and card."""
    from training.export import export, next_version
    from training.run import Run

    made = Run(run)
    folder = export(made, models, version or next_version(models / made.config().name))
    console.print(f"{folder}: exported")
    if activate:
        write_active(models, folder.parent.name, folder.name)


def main() -> None:
    """Run the command; errors that were foreseen are one line and exit status 1."""
    try:
        app()
    except (TrainingError, LeukoscopeError) as error:
        Console(stderr=True, markup=False, highlight=False, soft_wrap=True).print(
            f"leukoscope-train: {error}", style="red"
        )
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
