"""The command `leukoscope`: serve, answer folders, list the models, make API keys, check the audit log."""

import logging
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import NoReturn

import typer
import uvicorn
from fastapi import FastAPI

from app import logs
from app.commands.audit import audit_cli
from app.commands.keys import keys_cli
from app.commands.models import models_cli
from app.commands.settings import BAD_SETTINGS, settings_or_exit
from app.core.errors import LeukoscopeError
from app.folder import command
from app.main import create_app
from app.security.protocol import limited_protocol
from app.server import Server, leave_stuck_threads
from app.services import services_in
from app.settings import Settings, SettingsError, describe

cli = typer.Typer(
    help="Leukoscope: leukemic blasts (ALL) and normal cells (HEM) in microscope pictures.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
cli.add_typer(keys_cli, name="keys")
cli.add_typer(audit_cli, name="audit")
cli.add_typer(models_cli, name="models")


def _serve_help() -> str:
    # A line with \b alone keeps the paragraph after it from being wrapped.
    paragraphs = ["Serve the active model over HTTP until Ctrl-C.", "Settings are environment variables:"]
    for variable, default, allowed, meaning in describe():
        values = f"; {allowed}" if allowed else ""
        paragraphs.append(f"\b\n{variable} (default {default}{values})\n    {meaning}")
    return "\n\n".join(paragraphs)


@cli.command(help=_serve_help())
def serve() -> None:
    """Serve the active model over HTTP until Ctrl-C."""
    settings = settings_or_exit()
    logs.configure(settings.log_level, settings.log_format)
    failures: list[Exception] = []

    def stop(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    try:
        app = create_app(settings, on_start_failure=stop)
    except SettingsError as error:
        typer.echo(f"leukoscope: {error}", err=True)
        raise typer.Exit(BAD_SETTINGS) from None
    listener = _listen(settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.drain_timeout_s,
        lifespan="on",
        http=limited_protocol(settings),
        ws="none",
    )
    server = Server(
        config,
        partial(_announce_stop, app),
        delay_s=settings.drain_delay_s,
        hopeless=lambda: settings.exit_when_hung and not services_in(app).engine.alive,
    )
    # Uvicorn stops in good order on a signal and then raises it again; SIGINT becomes KeyboardInterrupt.
    signal.signal(signal.SIGTERM, _stopped)
    with listener, suppress(KeyboardInterrupt, SystemExit):
        server.run(sockets=[listener])
    if failures:
        _fail_start(failures[0])
    leave_stuck_threads()
    if server.gave_up:
        raise typer.Exit(1)


def _announce_stop(app: FastAPI) -> None:
    services_in(app).engine.announce_stop()


def main() -> None:
    """Run the command line."""
    cli()


def _listen(settings: Settings) -> socket.socket:
    """Bind before the model is loaded, so that a port in use is told at once."""
    address = f"{settings.host}:{settings.port}"
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        typer.echo(
            f"leukoscope: can't listen on {address}: {error.strerror}. "
            "Is another program using it? LEUKOSCOPE_HOST and LEUKOSCOPE_PORT choose another address.",
            err=True,
        )
        raise typer.Exit(1) from None


def _fail_start(error: Exception) -> NoReturn:
    if not isinstance(error, LeukoscopeError):
        logging.getLogger("leukoscope").error("unexpected failure at start", exc_info=error)
    typer.echo(f"leukoscope: can't start: {error}", err=True)
    raise typer.Exit(1)


def _stopped(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)


command.register(cli, settings_or_exit)

if __name__ == "__main__":
    main()
