"""Wire the service together: `create_app` with its lifespan, middleware, routes and handlers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app.inference.engine import Engine
from app.inference.loader import OpenSession
from app.inference.registry import Registry
from app.inference.session import OnnxSession
from app.metrics import Metrics
from app.middleware import RequestMiddleware, UnreadBodyMiddleware
from app.problems import install_handlers
from app.routes import explain, health, metrics, models, predict, web
from app.services import Services
from app.settings import Settings

_LOG: Final = logging.getLogger("leukoscope")
_DESCRIPTION: Final = (
    "Tells leukemic blasts (ALL) from normal cells (HEM) in microscope pictures of single white blood cells. "
    "Research use; not a medical device."
)


def create_app(
    settings: Settings,
    *,
    on_start_failure: Callable[[Exception], None] | None = None,
    open_session: OpenSession = OnnxSession.create,
) -> FastAPI:
    """Make the application.

    The model is loaded in the background once the application has started, so that `/livez`
    answers and `/readyz` tells why it does not yet.

    Args:
        settings: All of them.
        on_start_failure: Called if the model can't be served; without it the application stays up,
            not ready, and `/readyz` gives the reason.
        open_session: Makes a session of a model's graph.
    """
    service_metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = Engine(settings, service_metrics, Registry(settings.models_dir), open_session=open_session)
        app.state.services = Services(settings, service_metrics, engine)
        starting = asyncio.create_task(_start(engine, settings, on_start_failure))
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await engine.drain()

    # Without a content delivery network: the pages of /docs come with the package.
    app: FastAPI = FastAPIOffline(
        title="Leukoscope", version=_version(), description=_DESCRIPTION, lifespan=lifespan, redoc_url=None
    )
    app.add_middleware(RequestMiddleware, metrics=service_metrics)
    app.add_middleware(UnreadBodyMiddleware)
    install_handlers(app, service_metrics.count_rejected)
    for router in (predict.router, explain.router, models.router, health.router, metrics.router, web.router):
        app.include_router(router)
    app.mount("/web", web.PageFiles(), name="web")
    return app


async def _start(engine: Engine, settings: Settings, on_start_failure: Callable[[Exception], None] | None) -> None:
    try:
        model = await engine.start()
    except Exception as error:  # noqa: BLE001 - whatever it is, the operator must hear of it
        if on_start_failure is None:
            _LOG.exception("Leukoscope can't start")
        else:
            on_start_failure(error)
        return
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    _LOG.info(
        "Leukoscope is ready on http://%s:%d (%s on %s)",
        host,
        settings.port,
        model.installed.ref,
        model.session.provider,
    )


def _version() -> str:
    try:
        return version("leukoscope")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
