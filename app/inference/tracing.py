"""What the batcher tells of its work, span by span, to whoever listens; by default nobody does."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Place = object
"""Where in a trace something stands: what `Tracer.here` returned, meant for the same tracer only."""


class Tracer(Protocol):
    """Takes spans. Used from the event loop and from threads; must not block."""

    def here(self) -> Place:
        """Return the place of the span that is open in this task."""

    def span(
        self,
        name: str,
        *,
        parent: Place = None,
        links: Sequence[Place] = (),
        attributes: Mapping[str, str | int] | None = None,
    ) -> AbstractContextManager[Place]:
        """Open a span and close it when left; an exception that passes marks it as failed.

        Args:
            name: Of the work.
            parent: What it is a part of; None begins a trace of its own.
            links: What it was done for, besides: a batch works for several requests.
            attributes: More to tell; no text of a caller.
        """

    def ended(self, name: str, *, parent: Place, seconds: float) -> None:
        """Tell of work that has ended just now and took some seconds."""


class NoTracer:
    """The tracer that tells nobody."""

    def here(self) -> Place:
        """Return nothing: there is no trace."""
        return None

    def span(
        self,
        name: str,  # noqa: ARG002 - as in the protocol, like the others
        *,
        parent: Place = None,  # noqa: ARG002
        links: Sequence[Place] = (),  # noqa: ARG002
        attributes: Mapping[str, str | int] | None = None,  # noqa: ARG002
    ) -> AbstractContextManager[Place]:
        """Do nothing."""
        return nullcontext()

    def ended(self, name: str, *, parent: Place, seconds: float) -> None:
        """Do nothing."""
