"""`leukoscope audit`: check an audit log."""

from pathlib import Path
from typing import Annotated

import typer

from app.core.errors import AuditError
from app.security.audit_chain import verify

audit_cli = typer.Typer(help="Check an audit log.", no_args_is_help=True, rich_markup_mode=None)


@audit_cli.callback()
def _audit() -> None:
    """Check an audit log."""


@audit_cli.command(name="verify")
def verify_log(
    path: Annotated[Path, typer.Argument(help="The log; files rotated away beside it are checked too.")],
    anchor: Annotated[str | None, typer.Option(help="A hash noted earlier, which must occur.")] = None,
) -> None:
    """Check that no line was changed, taken out, added or moved. Exit code 1 if one was."""
    try:
        found = verify(path, anchor)
    except AuditError as error:
        typer.echo(f"leukoscope: {error}", err=True)
        raise typer.Exit(1) from None
    if found.torn_bytes:
        typer.echo(
            f"The last {found.torn_bytes} bytes are no whole line: a write under way, or one that a crash cut off. "
            "The service mends that when it starts.",
            err=True,
        )
    if found.first > 1:
        typer.echo(f"The log begins with number {found.first}; older files are not here.", err=True)
    lines = found.last.sequence - found.first + 1 if found.first else 0
    typer.echo(f"intact: {lines} lines in {len(found.files)} files")
    typer.echo(f"last hash: {found.last.hash}")
