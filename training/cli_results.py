"""The commands of `leukoscope-train` on runs that were judged: side by side, kept, and in the repository's pages."""

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

# As in `training.evidence`, which loads PyTorch.
_EVIDENCE: Final = Path("training/evidence")
_NARROWEST: Final = 26

results_commands = typer.Typer()
console = Console(markup=False, highlight=False, soft_wrap=True)

Evidence = Annotated[Path, typer.Option(help="Folder of the reports that are kept in the repository.")]


@results_commands.command("compare")
def compare_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of evaluated or kept runs, or their report files.")],
) -> None:
    """Show evaluated runs side by side."""
    from training.compare import head, read_reports, row

    judged = [row(one) for one in read_reports(runs)]
    names, *figures = zip(head(), *judged, strict=True)
    table = Table(*names)
    for column in table.columns:
        column.overflow = "fold"
    for figure in figures:
        table.add_row(*figure)
    # Room for each run, also where the output is a file.
    Console(markup=False, highlight=False, width=max(console.width, _NARROWEST * (1 + len(judged)))).print(table)


@results_commands.command("keep")
def keep_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of evaluated runs or exported models.")],
    evidence: Evidence = _EVIDENCE,
) -> None:
    """Store the reports of evaluated runs in the repository, for 'results'."""
    from training.evidence import keep

    for run in runs:
        console.print(f"{keep(run, evidence)}: kept")


@results_commands.command("results")
def results_command(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Folders of evaluated runs, instead of all that are kept.")
    ] = None,
    evidence: Evidence = _EVIDENCE,
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("training/RESULTS.md"),
) -> None:
    """Write the results of all kept runs, beside what the notebooks published."""
    from training.compare import read_reports, results_page
    from training.evidence import kept

    judged = read_reports(runs or kept(evidence))
    out.write_text(results_page(judged), encoding="utf-8")
    console.print(f"{out}: {len(judged)} runs")


@results_commands.command("card")
def card_command(folder: Annotated[Path, typer.Argument(help="models/<name>/<version>.")]) -> None:
    """Print a model's card, made anew from its report and configuration."""
    from training.folder import card_of_folder

    typer.echo(card_of_folder(folder), nl=False)


@results_commands.command("figures")
def figures_command(
    models: Annotated[Path, typer.Option(help="Folder of all models.")] = Path("models"),
    readme: Annotated[Path, typer.Option(help="File with the marked place.")] = Path("README.md"),
) -> None:
    """Renew the table of figures in README.md from the reports of all installed models."""
    from training.readme import figures_table, renewed

    readme.write_text(renewed(readme.read_text(encoding="utf-8"), figures_table(models)), encoding="utf-8")
    console.print(f"{readme}: figures renewed")
