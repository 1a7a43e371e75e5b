"""Who may use a route: `require_client` and `require_admin`, as dependencies of any router or route."""

from typing import Annotated, Final

from fastapi import Depends, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import Request

from app.core.errors import ForbiddenError
from app.recording import Caller
from app.security.keys import KEY_HEADER, Key
from app.services import Services, ServicesDep, services_of
from app.settings import PREFIX

_API_KEY: Final = APIKeyHeader(name=KEY_HEADER, auto_error=False, description="A key of LEUKOSCOPE_API_KEYS.")
_BEARER: Final = HTTPBearer(auto_error=False, description="The same key as a bearer token.")


async def presented_key(
    header: Annotated[str | None, Security(_API_KEY)] = None,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)] = None,
) -> str | None:
    """Return the key that came with the request, if any; `X-API-Key` goes before `Authorization`."""
    return header or (bearer.credentials if bearer is not None else None)


PresentedKey = Annotated[str | None, Depends(presented_key)]


async def require_client(request: Request, services: ServicesDep, presented: PresentedKey) -> None:
    """Let the holders of a client's or an admin's key pass; where no client's key is set, everybody.

    The key's name is in `request.state.key_name` afterwards.

    Raises:
        UnauthenticatedError: No key came, or an unknown one.
    """
    if services.keys.clients:
        _admit(request, services.keys.known(presented))


async def admit(request: Request) -> Services:
    """Do as `require_client` for a route that has FastAPI solve no dependencies, and return the services.

    Raises:
        UnauthenticatedError: No key came, or an unknown one.
    """
    services = services_of(request)
    if services.keys.clients:
        presented = await presented_key(await _API_KEY(request), await _BEARER(request))
        await require_client(request, services, presented)
    return services


async def require_admin(request: Request, services: ServicesDep, presented: PresentedKey) -> None:
    """Let the holders of an admin's key pass, and nobody else.

    Raises:
        ForbiddenError: No admin's key is set, or the key is a client's.
        UnauthenticatedError: No key came, or an unknown one.
    """
    if not services.keys.admins:
        raise ForbiddenError(
            "This needs an admin's key, and none is set. "
            f"Make one with `leukoscope keys new NAME` and name its hash in {PREFIX}ADMIN_KEYS."
        )
    key = services.keys.known(presented)
    if services.keys.admin(presented or "") is None:
        raise ForbiddenError(f"This needs an admin's key; {key.name!r} is a client's.")
    _admit(request, key)


async def require_for_metrics(request: Request, services: ServicesDep, presented: PresentedKey) -> None:
    """Do as `require_client` where the settings want a key for `/metrics`.

    Raises:
        UnauthenticatedError: No key came, or an unknown one.
    """
    if services.keys.metrics_need_key:
        await require_client(request, services, presented)


def caller_of(request: Request) -> Caller:
    """Return who asks, once the request has been admitted."""
    return Caller(request.state.request_id, key_name(request))


def key_name(request: Request) -> str | None:
    """Return the name of the key with which the request was admitted; None if it needed none."""
    name: str | None = getattr(request.state, "key_name", None)
    return name


def _admit(request: Request, key: Key) -> None:
    request.state.key_name = key.name
