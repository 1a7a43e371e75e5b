"""How the service logs: text or JSON lines, each with the id of the request that it belongs to."""

import json
import logging
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, Literal

LogFormat = Literal["text", "json"]

# What a line inherits from the request around it. Tasks and threads that a request starts have its copy.
_CONTEXT: Final[ContextVar[Mapping[str, str]]] = ContextVar("leukoscope_log_context")
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure(level: str, form: LogFormat) -> None:
    """Set the process's logging up, on standard error.

    Args:
        level: Least severe messages to log.
        form: ``text`` for people, ``json`` for machines: one object on a line.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def bind(**fields: str) -> None:
    """Add fields to every line that this request's tasks log from now on."""
    _CONTEXT.set({**bound(), **fields})


def bound() -> Mapping[str, str]:
    """Return the fields that `bind` has added, to be bound where another process goes on with the work."""
    return _CONTEXT.get({})


class JsonFormatter(logging.Formatter):
    """Makes each record a JSON object: time, level, logger, message, the request's fields, the record's own.

    A record's own fields are what the caller gave as ``extra={"fields": {...}}``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **bound(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
