"""`leukoscope keys`: make API keys."""

from typing import Annotated

import typer

from app.security.keys import KeySettingsError, new_key
from app.settings import PREFIX

keys_cli = typer.Typer(help="Make API keys.", no_args_is_help=True, rich_markup_mode=None)

_BAD_NAME = 2


@keys_cli.callback()
def _keys() -> None:
    """Make API keys."""


@keys_cli.command()
def new(name: Annotated[str, typer.Argument(help="Whose key it is; written to logs.")]) -> None:
    """Make a key: print it, and the hash that the settings hold. The key is stored nowhere."""
    try:
        secret, key = new_key(name)
    except KeySettingsError as error:
        typer.echo(f"leukoscope: {error}", err=True)
        raise typer.Exit(_BAD_NAME) from None
    typer.echo(f"key   {secret}")
    typer.echo(f"hash  {key.setting}")
    typer.echo(
        f"Hand the key to its holder; it can't be shown again. Put the hash into {PREFIX}API_KEYS (or "
        f"{PREFIX}ADMIN_KEYS), with others behind a comma, or into the file that {PREFIX}API_KEYS_FILE names.",
        err=True,
    )
