"""Instants as people write them: a time, a time of day, so long ago, or now. Pure."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

FORMS: Final = (
    "2026-11-26T14:03:05.250Z, 14:03:05 (today, UTC), 90s or 5m (ago), now, ms since 1970"
)

_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_MS_PER: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_TIME: Final = re.compile(r"\d\d:\d\d(:\d\d(\.\d+)?)?")


class BadInstant(ValueError):
    """This cannot be read as an instant; the message says what can."""


def parse(text: str, now_ms: int) -> int:
    """Milliseconds since 1970; raises ``BadInstant``. Without a zone it is UTC."""
    if text == "now":
        return now_ms
    if text.isdecimal():
        return int(text)
    if (ago_ms := span_ms(text)) is not None:
        return now_ms - ago_ms
    try:
        if _TIME.fullmatch(text):
            day = datetime.fromtimestamp(now_ms / 1000, tz=UTC).date()
            text = f"{day.isoformat()}T{text}"
        at = datetime.fromisoformat(text)
    except ValueError:
        raise BadInstant(f"{text!r} is no instant; write {FORMS}") from None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    return round((at - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1))


def span_ms(text: str) -> int | None:
    """``90s``, ``1.5h`` or ``90d`` in milliseconds; None for what is no span."""
    found = _SPAN.fullmatch(text)
    return round(float(found[1]) * _MS_PER[found[2]]) if found else None


def show(at_ms: int) -> str:
    """``2026-11-26T14:03:05.250Z``, which ``parse`` reads."""
    at = datetime.fromtimestamp(at_ms / 1000, tz=UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
