"""`leukoscope models`: list what is installed, and choose what is served."""

import asyncio
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer
from pydantic import ValidationError

from app import logs
from app.commands.settings import settings_or_exit
from app.core.errors import LeukoscopeError
from app.folder.client_key import read_client_key
from app.folder.errors import UsageError
from app.inference.engine import Engine
from app.inference.loader import LoadedModel
from app.inference.registry import ModelRef, Registry
from app.metrics import Metrics
from app.schemas import Problem, SwitchedModel
from app.security.keys import KEY_HEADER
from app.settings import CLIENT_KEY_VARIABLE, Settings

models_cli = typer.Typer(help="List the installed models, or choose which one is served.", rich_markup_mode=None)

# TensorRT builds an engine for minutes when it meets a model for the first time.
_SWITCH_TIMEOUT_S: Final = 1800.0


@models_cli.callback(invoke_without_command=True)
def list_models(context: typer.Context) -> None:
    """List the installed models; * marks the one that is served."""
    if context.invoked_subcommand is not None:
        return
    registry = Registry(settings_or_exit().models_dir)
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


@models_cli.command()
def activate(
    name: Annotated[str, typer.Argument(help="Folder under models/.")],
    version: Annotated[str, typer.Argument(help="Folder under that.")],
    server: Annotated[
        str | None, typer.Option(help="Have this running service change its model, such as http://127.0.0.1:8000.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help=f"File with an admin's key of that service; or set {CLIENT_KEY_VARIABLE}.")
    ] = None,
) -> None:
    """Serve another model: from the next start on, or at once in a running service with --server.

    Without --server the model is loaded and proven here as the service would, and then named in
    active.json. A service does the same, and loses no request.
    """
    try:
        ref = ModelRef(name, version)
        done = _activate_here(ref) if server is None else _activate_there(ref, server, read_client_key(api_key_file))
    except (LeukoscopeError, UsageError, OSError) as error:
        typer.echo(f"leukoscope: {name} {version} is not activated: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(done)


def _activate_here(ref: ModelRef) -> str:
    settings = settings_or_exit()
    logs.configure(settings.log_level, settings.log_format)
    model = asyncio.run(_prove(settings, ref))
    Registry(settings.models_dir).activate(ref)
    return f"{ref} is served from the next start on ({model.session.provider})"


async def _prove(settings: Settings, ref: ModelRef) -> LoadedModel:
    engine = Engine(settings, Metrics(), Registry(settings.models_dir))
    try:
        return await engine.prove(ref)
    finally:
        await engine.drain()


def _activate_there(ref: ModelRef, server: str, key: str | None) -> str:
    """Ask a service.

    Raises:
        UsageError: It can't be reached, or refuses.
    """
    address = f"{server.rstrip('/')}/models/active"
    headers = {} if key is None else {KEY_HEADER: key}
    try:
        response = httpx.put(
            address, json={"name": ref.name, "version": ref.version}, headers=headers, timeout=_SWITCH_TIMEOUT_S
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UsageError(f"{server}: {error}") from error
    try:
        if response.status_code != httpx.codes.OK:
            raise UsageError(f"{server}: {Problem.model_validate_json(response.content).detail}")
        switched = SwitchedModel.model_validate_json(response.content)
    except ValidationError as error:
        raise UsageError(f"{server}: does not answer as a Leukoscope service ({response.status_code})") from error
    kept = "" if switched.persisted else f"; not from its next start on: {switched.persist_problem}"
    return f"{ref} is served by {server} now{kept}"
