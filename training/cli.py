"""The command `leukoscope-train`: from a folder of cells to a model folder, step by step."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from app.core.active import write_active
from app.core.errors import LeukoscopeError
from training.cli_results import results_commands
from training.data.index import INDEX_FILE, build_index, write_index
from training.errors import TrainingError
from training.memory import keep_freed_memory

RUNS: Final = Path("runs")
DEFAULT_INDEX: Final = RUNS / INDEX_FILE
_SHOWN_FAULTS: Final = 10

app = typer.Typer(
    name="leukoscope-train",
    help="Train, judge and export classifiers of white blood cells (ALL against HEM).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(results_commands)
console = Console(markup=False, highlight=False, soft_wrap=True)

Split = Annotated[
    str | None,
    typer.Option(help="Another split: image (it leaks), preliminary, fold:TEST_FOLD or subject:PART."),
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Another value, such as fit.epochs=3; can be given several times.")
]
Start = Annotated[
    Path | None, typer.Option(help="Safetensors file with the start weights, instead of the one that CONFIG names.")
]
IndexFile = Annotated[Path, typer.Option(help="Index file, as made by 'index'.")]
NewRun = Annotated[
    Path | None,
    typer.Option(help="The run's folder, by default runs/<name>[-<split>]; an interrupted run goes on there."),
]
RunFolder = Annotated[Path, typer.Argument(help="A run's folder, as made by 'fit'.")]


@app.command("index")
def index_command(
    data: Annotated[Path, typer.Argument(help="Folder of a C-NMC download, or one that holds all/ and hem/.")],
    out: Annotated[Path, typer.Option(help="Index file to write.")] = DEFAULT_INDEX,
) -> None:
    """Read every cell of DATA and write one table: file, label, subject, fold, size, hashes, groups."""
    out.parent.mkdir(parents=True, exist_ok=True)
    index = build_index(data, out)
    write_index(index, out)
    counts = Counter(fault.kind for fault in index.faults)
    for kind in counts:
        named = [fault for fault in index.faults if fault.kind == kind]
        for fault in named[:_SHOWN_FAULTS]:
            console.print(f"{kind}: {fault.path}: {fault.reason}", style="yellow")
        if len(named) > _SHOWN_FAULTS:
            console.print(
                f"{kind}: {len(named) - _SHOWN_FAULTS} more in {out.with_suffix('.faults.csv')}", style="yellow"
            )
    cells = index.cells
    found = ", ".join(
        f"{count} {label or 'unlabelled'}" for label, count in sorted(Counter(cells["label"]).items(), key=str)
    )
    faults = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "nothing amiss"
    console.print(
        f"{out}: {len(cells)} cells ({found}) of {cells['subject'].drop_nulls().n_unique()} subjects in "
        f"{cells['group'].drop_nulls().n_unique()} groups; {faults}; {index.reused} known from before"
    )


@app.command("distil")
def distil_command(
    config: Annotated[Path, typer.Argument(help="A TOML file such as training/configs/efficientnet-b3-features.toml.")],
    index: IndexFile = DEFAULT_INDEX,
    out: NewRun = None,
    start: Start = None,
    split: Split = None,
    changes: Changes = None,
) -> None:
    """Teach a grown network its relative's features, with its own activation. No labels are used."""
    from training.config import FeatureRunConfig, load_config
    from training.distil import distil

    settings = load_config(config, FeatureRunConfig, start, split, changes or ())
    folder = out or default_run(settings.name, split)
    loss = distil(settings, index, folder)
    console.print(f"{folder}: unexplained share of the relative's features {loss:.3f}")


@app.command("fit")
def fit_command(
    config: Annotated[Path, typer.Argument(help="A TOML file such as training/configs/notebook-efficientnet-b3.toml.")],
    index: IndexFile = DEFAULT_INDEX,
    out: NewRun = None,
    start: Start = None,
    split: Split = None,
    changes: Changes = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Train in fit.devices workers of Ray: the cluster of RAY_ADDRESS, or here.")
    ] = False,
) -> None:
    """Train a classifier; run again with the same words to resume."""
    from training.config import RunConfig, load_config

    settings = load_config(config, RunConfig, start, split, changes or ())
    folder = out or default_run(settings.name, split)
    if ray:
        from training.ray_job import fit_on_ray

        fit_on_ray(settings, index, folder)
        console.print(f"{folder}: fitted; the figures are in logs/metrics.csv")
        return
    from training.fit import fit

    result = fit(settings, index, folder)
    if result.trainer.is_global_zero:
        console.print(f"{result.run.folder}: best validation loss {result.best_loss:.4f}")


@app.command("end")
def end_command(run: RunFolder) -> None:
    """End an interrupted run at its last checkpoint, so that it can be judged as it stands."""
    from training.fit import end
    from training.run import Run

    epochs, planned = end(Run(run))
    console.print(f"{run}: ended after {epochs} of {planned} epochs; 'fit' would go on with it")


@app.command("probe")
def probe_command(
    config: Annotated[Path, typer.Argument(help="A TOML file such as training/configs/efficientnet-lite0.toml.")],
    index: IndexFile = DEFAULT_INDEX,
    out: NewRun = None,
    start: Start = None,
    split: Split = None,
    changes: Changes = None,
) -> None:
    """Solve the last layer of a frozen network: a classifier in minutes, without a GPU."""
    from training.config import ProbeRunConfig, load_config
    from training.probe import probe

    settings = load_config(config, ProbeRunConfig, start, split, changes or ())
    folder = out or default_run(settings.name, split)
    loss = probe(settings, index, folder)
    console.print(f"{folder}: cross-entropy of held-out subjects {loss:.4f}")


@app.command("floor")
def floor_command(
    config: Annotated[Path, typer.Argument(help="A TOML file, whose split and input are used.")],
    index: IndexFile = DEFAULT_INDEX,
    out: NewRun = None,
    split: Split = None,
) -> None:
    """Judge what a cell's area and colours alone tell: the floor that a network must clear."""
    from training.config import load_config
    from training.floor import FloorConfig, judge_floor

    folder = out or default_run("floor", split)
    report = judge_floor(load_config(config, FloorConfig, split=split), index, folder)
    console.print(f"{folder}: AUROC {report['test']['auroc']:.4f}, weighted F1 {report['test']['weighted_f1']:.4f}")


@app.command("evaluate")
def evaluate_command(
    run: RunFolder,
    views: Annotated[int, typer.Option(help="Mirrored and turned views to average over: 1, 2, 4 or 8.")] = 1,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures of each kind that is no cell, to judge novelty.")] = 24,
    judged_by: Annotated[
        list[Path] | None,
        typer.Option(help="For a run on all subjects: an evaluated run of the same recipe; give it for each."),
    ] = None,
) -> None:
    """Judge a fitted run on its test part, and write report.json, report.html and predictions.parquet."""
    from training.evaluate import evaluate
    from training.run import Run

    if views not in {1, 2, 4, 8}:
        raise typer.BadParameter(f"views are 1, 2, 4 or 8, not {views}")
    report = evaluate(Run(run), views=views, pictures=pictures, judged_by=[Run(one) for one in judged_by or ()])
    table = Table("figure", "validation", "test", title=report["split"]["name"])
    for name in ("cells", "weighted_f1", "auroc", "accuracy", "sensitivity", "specificity", "ece"):
        table.add_row(name, *(f"{report[part][name]:.4g}" for part in ("validation", "test")))
    novelty = report["novelty"]
    table.add_row("flagged as no cell", *(f"{novelty['cells_flagged'][part]:.4g}" for part in ("validation", "test")))
    console.print(table)
    console.print(f"Of pictures that are no cell, {novelty['no_cells_flagged']['testing']:.3f} are flagged.")


@app.command("export")
def export_command(
    run: RunFolder,
    version: Annotated[
        str | None, typer.Option(help="Semantic version of the new model; by default one minor version on.")
    ] = None,
    models: Annotated[Path, typer.Option(help="Folder of all models.")] = Path("models"),
    precision: Annotated[
        str, typer.Option(help="fp32, or int8 for convolutions with 8 bits; the loss is measured and stated.")
    ] = "fp32",
    activate: Annotated[
        bool, typer.Option(help="Name it in MODELS/active.json: the service's next start serves it.")
    ] = False,
) -> None:
    """Write MODELS/<name>/<version> with graph, manifest, report and card."""
    from training.export import export, next_version
    from training.run import Run

    if precision not in {"fp32", "int8"}:
        raise typer.BadParameter(f"precision is fp32 or int8, not {precision}")
    made = Run(run)
    number = version or next_version(models / made.config().name)
    folder = export(made, models, number, precision="int8" if precision == "int8" else "fp32")
    console.print(f"{folder}: exported")
    if activate:
        write_active(models, folder.parent.name, folder.name)


@app.command("add-variant")
def add_variant_command(
    folder: Annotated[Path, typer.Argument(help="models/<name>/<version>.")],
    run: Annotated[Path, typer.Argument(help="An evaluated run that takes the same input.")],
    precision: Annotated[str, typer.Option(help="What LEUKOSCOPE_PRECISION calls it.")] = "int8",
    version: Annotated[
        str | None, typer.Option(help="Semantic version of the new model; by default one minor version on.")
    ] = None,
) -> None:
    """Write the next version of a model, with a run's graph beside its own as another precision."""
    from training.export import next_version
    from training.run import Run
    from training.variants import add_variant

    console.print(f"{add_variant(folder, Run(run), precision, version or next_version(folder.parent))}: written")


@app.command("unpack")
def unpack_command(
    folder: Annotated[Path, typer.Argument(help="models/<name>/<version>.")],
    out: Annotated[Path, typer.Argument(help="Folder to make, such as runs/<name>-<version>.")],
    precision: Annotated[str | None, typer.Option(help="A variant of the model, such as int8.")] = None,
) -> None:
    """Take the weights out of an exported model, for --start: to teach its last layer anew without other files."""
    from training.unpack import unpack

    console.print(f"{unpack(folder, out, precision)}: written")


@app.command("recalibrate")
def recalibrate_command(
    folder: Annotated[Path, typer.Argument(help="models/<name>/<version>.")],
    index: Annotated[Path, typer.Argument(help="Index of the site's labelled cells.")],
    version: Annotated[
        str | None, typer.Option(help="Semantic version of the new model; by default one minor version on.")
    ] = None,
) -> None:
    """Fit temperature, review band and novelty threshold to another site's cells; a new version beside the old one."""
    from training.export import next_version
    from training.recalibrate import recalibrate

    console.print(f"{recalibrate(folder, index, version or next_version(folder.parent))}: written")


@app.command("sheet")
def sheet_command(
    config: Annotated[Path, typer.Argument(help="A TOML file of a classifier's run.")],
    index: IndexFile = DEFAULT_INDEX,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = RUNS / "sheet.png",
    cells: Annotated[int, typer.Option(min=1, max=64, help="Rows.")] = 8,
    views: Annotated[int, typer.Option(min=1, max=32, help="Augmented pictures of each cell.")] = 7,
    changes: Changes = None,
) -> None:
    """Write a contact sheet: what the model will see, first as preprocessed, then as augmented."""
    from training.config import RunConfig, load_config
    from training.sheet import contact_sheet

    settings = load_config(config, RunConfig, changes=changes or ())
    contact_sheet(settings, index, out, cells=cells, views=views)
    console.print(f"{out}: {cells} cells, each once as it is and {views} times augmented")


def default_run(name: str, split: str | None) -> Path:
    """Return a run's folder: the configuration's name, and the split if it is not the configuration's own."""
    return RUNS / (name if split is None else f"{name}-{split.replace(':', '-')}")


def main() -> None:
    """Run the command; errors that were foreseen are one line and exit status 1."""
    keep_freed_memory()
    try:
        app()
    except (TrainingError, LeukoscopeError, OSError) as error:
        Console(stderr=True, markup=False, highlight=False, soft_wrap=True).print(
            f"leukoscope-train: {error}", style="red"
        )
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
