"""Traces through OpenTelemetry: the only module that imports it, and only if traces are switched on.

Where they go is told by OpenTelemetry's own environment variables, ``OTEL_EXPORTER_OTLP_ENDPOINT`` first of all.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.inference.tracing import Place

_NANOSECONDS: Final = 1_000_000_000


class OtelTracer:
    """Makes OpenTelemetry spans of the service's own."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("leukoscope")

    def here(self) -> Place:
        """Return the open span's context."""
        return trace.get_current_span().get_span_context()

    @contextmanager
    def span(
        self,
        name: str,
        *,
        parent: Place = None,
        links: Sequence[Place] = (),
        attributes: Mapping[str, str | int] | None = None,
    ) -> Iterator[Place]:
        """Open a span; see `Tracer.span`."""
        # Several pictures of one request are one link. A context is itself not hashable.
        sources = {(place.trace_id, place.span_id): place for place in map(_context_of, links) if place is not None}
        with self._tracer.start_as_current_span(
            name,
            context=_inside(parent),
            links=[Link(place) for place in sources.values()],
            attributes=attributes,
        ) as span:
            yield span.get_span_context()

    def ended(self, name: str, *, parent: Place, seconds: float) -> None:
        """Tell of work that has ended; see `Tracer.ended`."""
        now = time.time_ns()
        span = self._tracer.start_span(name, context=_inside(parent), start_time=now - int(seconds * _NANOSECONDS))
        span.end(now)

    @contextmanager
    def request(self, headers: Headers, method: str) -> Iterator[trace.Span]:
        """Open the span of a request, as a part of the caller's trace if its headers name one."""
        with self._tracer.start_as_current_span(
            method,
            context=propagate.extract(dict(headers)),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method},
        ) as span:
            yield span

    def install(self, app: Starlette) -> None:
        """Have each request of an application traced."""
        app.add_middleware(TracingMiddleware, tracer=self)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class TracingMiddleware:
    """Opens a span around each request, and puts its trace's id into the request's log lines."""

    def __init__(self, app: ASGIApp, tracer: OtelTracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._tracer.request(Headers(scope=scope), scope["method"]) as span:
            logs.bind(trace_id=trace.format_trace_id(span.get_span_context().trace_id))

            async def watching_send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _describe(span, scope, message["status"])
                await send(message)

            await self._app(scope, receive, watching_send)


def open_tracer() -> OtelTracer:
    """Make the tracer that sends spans by OTLP over HTTP, in a thread of its own."""
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "leukoscope"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTracer(provider)


def _describe(span: trace.Span, scope: Scope, status: int) -> None:
    route = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    span.set_attribute("leukoscope.request_id", scope["state"]["request_id"])
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))


def _context_of(place: Place) -> trace.SpanContext | None:
    return place if isinstance(place, trace.SpanContext) and place.is_valid else None


def _inside(place: Place) -> Context:
    # Never None, which would mean the span that happens to be open.
    known = _context_of(place)
    return Context() if known is None else trace.set_span_in_context(trace.NonRecordingSpan(known), Context())
