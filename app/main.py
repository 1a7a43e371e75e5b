"""Wire the service together: `create_app` with its lifespan, middleware, routes and handlers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline

from app.inference.engine import Engine
from app.inference.loader import OpenSession
from app.inference.opening import open_session as open_by_placement
from app.inference.providers import gpu_count
from app.inference.registry import Registry
from app.inference.runner import Runner
from app.metrics import Metrics
from app.middleware import RequestMiddleware, UnreadBodyMiddleware
from app.problems import install_handlers, openapi_problems
from app.routes import explain, health, models, predict, v2, web
from app.routes import metrics as metrics_page
from app.routes.access import require_client, require_for_metrics
from app.security.audit import AuditFile, AuditLog
from app.security.headers import SecurityHeadersMiddleware
from app.security.keys import AccessKeys
from app.security.limits import BodyLimitsMiddleware
from app.services import Services
from app.settings import PREFIX, Settings, SettingsError
from app.v2.grpc_option import GrpcOption

if TYPE_CHECKING:
    from app.telemetry import OtelTracer

OpenRunner = Callable[[Settings, Metrics, Registry], Runner]

_LOG: Final = logging.getLogger("leukoscope")
_DOCS_PATH: Final = "/docs"
_DESCRIPTION: Final = (
    "Tells leukemic blasts (ALL) from normal cells (HEM) in microscope pictures of single white blood cells. "
    "Research use; not a medical device."
)


def create_app(
    settings: Settings,
    *,
    on_start_failure: Callable[[Exception], None] | None = None,
    open_session: OpenSession = open_by_placement,
    open_runner: OpenRunner | None = None,
    metrics: Metrics | None = None,
    ready_first: bool = False,
) -> FastAPI:
    """Make the application.

    The model is loaded in the background once the application has started, so that `/livez`
    answers and `/readyz` tells why it does not yet.

    Args:
        settings: All of them.
        on_start_failure: Called if the model can't be served; without it the application stays up,
            not ready, and `/readyz` gives the reason.
        open_session: Makes a session of a model's graph.
        open_runner: Makes what loads and runs models; by default this process does.
        metrics: Where everything is counted; by default new ones.
        ready_first: Start only once the model is loaded; then `on_start_failure` must raise to stop the start.

    Raises:
        SettingsError: The API keys can't be read, or there are none and the address is public; or traces
            are wanted and the packages for them are not there.
    """
    keys = AccessKeys.of(settings)
    tracer = _open_tracer(settings)
    service_metrics = metrics or Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        registry = Registry(settings.models_dir)
        runner = open_runner(settings, service_metrics, registry) if open_runner else None
        engine = Engine(settings, service_metrics, registry, open_session=open_session, tracer=tracer, runner=runner)
        audit = _audit_log(settings)
        services = Services(settings, service_metrics, engine, keys, audit)
        app.state.services = services
        grpc = GrpcOption(services, app.version)
        starting = asyncio.create_task(_start(services, grpc, on_start_failure))
        try:
            if ready_first:
                await starting
            yield
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await asyncio.gather(engine.drain(), grpc.stop())
            if audit is not None:
                await audit.close()
            if tracer is not None:
                await asyncio.to_thread(tracer.close)

    # Without a content delivery network: the pages of /docs come with the package.
    app: FastAPI = FastAPIOffline(
        title="Leukoscope",
        version=_version(),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=_DOCS_PATH,
        redoc_url=None,
        # Traces are this service's own; FastAPI's would come on top, where the environment happens to configure them.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    _add_middleware(app, settings, service_metrics, tracer)
    install_handlers(app, service_metrics.count_rejected)
    _add_routes(app)
    return app


def _add_middleware(app: FastAPI, settings: Settings, metrics: Metrics, tracer: "OtelTracer | None") -> None:
    # The last one added is the outermost.
    app.add_middleware(BodyLimitsMiddleware, settings=settings)
    if tracer is not None:
        tracer.install(app)
    app.add_middleware(RequestMiddleware, metrics=metrics)
    app.add_middleware(UnreadBodyMiddleware)
    app.add_middleware(SecurityHeadersMiddleware, docs_path=_DOCS_PATH)


def _add_routes(app: FastAPI) -> None:
    app.routes.append(predict.DirectRoute())
    for router in (predict.router, explain.router, models.router):
        app.include_router(router, dependencies=[Depends(require_client)], responses=openapi_problems(401))
    app.include_router(v2.router, dependencies=[Depends(require_client)], responses=v2.errors(401))
    app.include_router(v2.public_router)
    app.include_router(health.router)
    app.include_router(metrics_page.router, dependencies=[Depends(require_for_metrics)])
    app.include_router(web.router)
    app.mount("/web", web.PageFiles(), name="web")


def _audit_log(settings: Settings) -> AuditLog | None:
    if settings.audit_log is None:
        return None
    return AuditLog(AuditFile(settings.audit_log, fsync=settings.audit_fsync, max_bytes=settings.audit_max_bytes))


async def _start(services: Services, grpc: GrpcOption, on_start_failure: Callable[[Exception], None] | None) -> None:
    engine, audit, settings, metrics = services.engine, services.audit, services.settings, services.metrics
    try:
        await grpc.start()  # before the model, so that a port in use is told at once
        if audit is not None:
            await audit.open()
        metrics.gpu_expected.set(settings.device == "cuda" or (settings.device == "auto" and await _gpu_is_there()))
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


async def _gpu_is_there() -> bool:
    return await asyncio.to_thread(gpu_count) > 0


def _open_tracer(settings: Settings) -> "OtelTracer | None":
    if settings.traces == "off":
        return None
    try:
        from app.telemetry import open_tracer  # noqa: PLC0415 - costs nothing where it is off
    except ImportError as error:
        raise SettingsError(
            f"{PREFIX}TRACES={settings.traces} needs packages that are not installed: pip install 'leukoscope[otel]'"
        ) from error
    return open_tracer()


def _version() -> str:
    try:
        return version("leukoscope")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
