"""The command `leukoscope`: serve, answer whole folders, and list the installed models."""

import logging
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType
from typing import Final, NoReturn

import typer
import uvicorn
from pydantic import ValidationError

from app.core.errors import LeukoscopeError
from app.folder import command
from app.inference.registry import Registry
from app.main import create_app
from app.settings import Settings, describe, explain

_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_BAD_SETTINGS: Final = 2

cli = typer.Typer(
    help="Leukoscope: leukemic blasts (ALL) and normal cells (HEM) in microscope pictures.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


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
    settings = _settings()
    logging.basicConfig(level=settings.log_level.upper(), format=_LOG_FORMAT)
    listener = _listen(settings)
    failures: list[Exception] = []

    def stop(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    config = uvicorn.Config(
        create_app(settings, on_start_failure=stop),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.drain_timeout_s,
        lifespan="on",
    )
    server = uvicorn.Server(config)
    # Uvicorn stops in good order on a signal and then raises it again; SIGINT becomes KeyboardInterrupt.
    signal.signal(signal.SIGTERM, _stopped)
    with listener, suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if failures:
        _fail_start(failures[0])


@cli.command(name="models")
def list_models() -> None:
    """List the installed models; * marks the one that is served."""
    registry = Registry(_settings().models_dir)
    try:
        active = registry.active()
    except LeukoscopeError as error:
        active = None
        typer.echo(str(error), err=True)
    good = False
    for model in registry.scan():
        mark = "*" if model.ref == active else " "
        good = good or (model.ref == active and model.problem is None)
        typer.echo(f"{mark} {model.ref.name}  {model.ref.version}  {model.problem or 'verified'}")
    if not good:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    cli()


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        for line in explain(error):
            typer.echo(f"leukoscope: {line}", err=True)
        raise typer.Exit(_BAD_SETTINGS) from None


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


command.register(cli, _settings)

if __name__ == "__main__":
    main()
