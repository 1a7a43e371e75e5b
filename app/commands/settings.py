"""The settings, or a plain line for each that is wrong."""

from typing import Final

import typer
from pydantic import ValidationError

from app.settings import Settings, explain

BAD_SETTINGS: Final = 2


def settings_or_exit() -> Settings:
    """Read the settings; if one is wrong, say so and end with `BAD_SETTINGS`."""
    try:
        return Settings()
    except ValidationError as error:
        for line in explain(error):
            typer.echo(f"leukoscope: {line}", err=True)
        raise typer.Exit(BAD_SETTINGS) from None
