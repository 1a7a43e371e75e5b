"""What the routes need of the running application, in one typed place on `app.state`."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.applications import Starlette
from starlette.requests import Request

from app.inference.engine import Engine
from app.metrics import Metrics
from app.security.audit import AuditLog
from app.security.keys import AccessKeys
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """Built when the application starts, and gone with it."""

    settings: Settings
    metrics: Metrics
    engine: Engine
    keys: AccessKeys
    audit: AuditLog | None


def services_in(app: Starlette) -> Services:
    """Return the services of an application that has started."""
    services = app.state.services
    assert isinstance(services, Services)  # noqa: S101 - app.state is untyped; this narrows it
    return services


def services_of(request: Request) -> Services:
    """Return the services of the application that got this request."""
    return services_in(request.app)


ServicesDep = Annotated[Services, Depends(services_of)]
