"""The command `leukoscope`: serve, answer folders, list the models, make API keys, check the audit log."""

import asyncio
import logging
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Annotated, Final, NoReturn

import typer
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from app import logs
from app.commands.audit import audit_cli
from app.commands.keys import keys_cli
from app.core.errors import LeukoscopeError
from app.core.spec import write_active
from app.folder import command
from app.inference.engine import Engine
from app.inference.loader import LoadedModel
from app.inference.registry import ModelRef, Registry
from app.main import create_app
from app.metrics import Metrics
from app.security.protocol import limited_protocol
from app.server import Server, leave_stuck_threads
from app.services import services_in
from app.settings import Settings, SettingsError, describe, explain

_BAD_SETTINGS: Final = 2

cli = typer.Typer(
    help="Leukoscope: leukemic blasts (ALL) and normal cells (HEM) in microscope pictures.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
cli.add_typer(keys_cli, name="keys")
cli.add_typer(audit_cli, name="audit")


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
    logs.configure(settings.log_level, settings.log_format)
    failures: list[Exception] = []

    def stop(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    try:
        app = create_app(settings, on_start_failure=stop)
    except SettingsError as error:
        typer.echo(f"leukoscope: {error}", err=True)
        raise typer.Exit(_BAD_SETTINGS) from None
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
    server = Server(config, partial(_announce_stop, app), delay_s=settings.drain_delay_s)
    # Uvicorn stops in good order on a signal and then raises it again; SIGINT becomes KeyboardInterrupt.
    signal.signal(signal.SIGTERM, _stopped)
    with listener, suppress(KeyboardInterrupt, SystemExit):
        server.run(sockets=[listener])
    if failures:
        _fail_start(failures[0])
    leave_stuck_threads()


models = typer.Typer(help="List the installed models, or choose which one is served.", rich_markup_mode=None)
cli.add_typer(models, name="models")


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context) -> None:
    """List the installed models; * marks the one that is served."""
    if context.invoked_subcommand is not None:
        return
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


@models.command()
def activate(
    name: Annotated[str, typer.Argument(help="Folder under models/.")],
    version: Annotated[str, typer.Argument(help="Folder under that.")],
) -> None:
    """Load and prove a model as the service would, then name it in active.json for the next start.

    A service that is running is told by PUT /models/active; it writes active.json too.
    """
    settings = _settings()
    logs.configure(settings.log_level, settings.log_format)
    try:
        model = asyncio.run(_prove(settings, ModelRef(name, version)))
        write_active(settings.models_dir, name, version)
    except (LeukoscopeError, OSError) as error:
        typer.echo(f"leukoscope: {name} {version} is not activated: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{model.installed.ref} is served from the next start on ({model.session.provider})")


async def _prove(settings: Settings, ref: ModelRef) -> LoadedModel:
    engine = Engine(settings, Metrics(), Registry(settings.models_dir))
    try:
        return await engine.prove(ref)
    finally:
        await engine.drain()


def _announce_stop(app: FastAPI) -> None:
    services_in(app).engine.announce_stop()


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
