"""The table from exception to problem."""

import pytest

from app.core import errors
from app.problems import KINDS

# The contract's statuses.
STATUS = {
    "UndecodableImageError": 422,
    "ImageTooLargeError": 413,
    "MalformedFormError": 400,
    "UnsupportedMediaTypeError": 415,
    "BodyTooLargeError": 413,
    "TooManyImagesError": 413,
    "QueueFullError": 429,
    "DeadlineExceededError": 504,
    "NotReadyError": 503,
    "InferenceError": 500,
    "NoExplanationError": 501,
    "AuditError": 503,
    "UnauthenticatedError": 401,
    "ForbiddenError": 403,
}


def concrete(cls: type[errors.LeukoscopeError]) -> set[type[errors.LeukoscopeError]]:
    return {cls} if not cls.__subclasses__() else set().union(*(concrete(sub) for sub in cls.__subclasses__()))


def test_every_concrete_error_is_mapped_and_nothing_else() -> None:
    assert set(KINDS) == concrete(errors.LeukoscopeError)


def test_slugs_differ() -> None:
    assert len({kind.slug for kind in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize(("name", "status"), STATUS.items())
def test_statuses_are_the_contracts(name: str, status: int) -> None:
    kind = KINDS[getattr(errors, name)]
    assert kind.status == status
    assert kind.type.startswith("/problems/")
