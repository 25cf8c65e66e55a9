"""Logs to standard error: one line of key=value, or one JSON object, per record.

Loggers are the standard library's and their names start with ``switchyard.``; fields are given as
``extra={"port": 8000}``. Of requests, ids and lengths are logged and never content; no secrets.
"""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

#: A longer value is cut: a log is no place for payloads.
VALUE_CHARS_MAX: Final = 2000
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


class TextFormatter(logging.Formatter):
    """``2026-11-20T18:40:00.123Z INFO switchyard.gateway gateway-0 listening port=8000``.

    A traceback follows on lines of its own.
    """

    def __init__(self, instance: str) -> None:
        super().__init__()
        self._instance = instance

    def format(self, record: logging.LogRecord) -> str:
        words = [_time(record), record.levelname, record.name, self._instance]
        words.append(_cut(record.getMessage()).replace("\n", "\\n"))
        words += [f"{key}={_quoted(value)}" for key, value in _fields(record).items()]
        line = " ".join(words)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """The same as an object: time, level, logger, instance, message, fields, traceback."""

    def __init__(self, instance: str) -> None:
        super().__init__()
        self._instance = instance

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "instance": self._instance,
            "message": _cut(record.getMessage()),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=lambda value: _cut(str(value)), ensure_ascii=False)


FORMATS: Final[dict[str, Callable[[str], logging.Formatter]]] = {
    "text": TextFormatter,
    "json": JsonFormatter,
}


def configure(instance: str, level: str, line_format: str) -> None:
    """Send our records from ``level`` up, and other libraries' warnings, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATS[line_format](instance))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("switchyard").setLevel(level.upper())
    logging.captureWarnings(capture=True)


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, tz=UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {
        key: _cut(value) if isinstance(value, str) else value
        for key, value in record.__dict__.items()
        if key not in _STANDARD
    }


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_CHARS_MAX else text[:VALUE_CHARS_MAX] + "..."


def _quoted(value: Any) -> str:
    text = _cut(str(value))
    plain = bool(text) and text.isprintable() and not set(text) & set(' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)
