"""Traces: the W3C traceparent in each envelope, and spans for those that are sampled.

A message published with a sampled traceparent becomes a PRODUCER span; that span travels in the
envelope, and the CONSUMER span around the receiver's handler is its child. The handler sees its own
span as ``Received.traceparent``, so what it publishes with it hangs below. Whoever is not sampled
pays one look at the last character of a string: a message is a hundred times cheaper than a span.
"""

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry import context, trace
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    TraceFlags,
)

from schemas.catalogue import BY_MESSAGE
from schemas.message import Message

_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_ODD_HEX: Final = frozenset("13579bdf")
_tracer: Final = trace.get_tracer("switchyard.bus")


def new_trace(*, sampled: bool) -> str:
    """A traceparent for a request that came without one; its span id stands for the client."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{'01' if sampled else '00'}"


def is_sampled(traceparent: str | None) -> bool:
    """Is the sampled flag (the lowest bit) set?"""
    return traceparent is not None and traceparent[-1:] in _ODD_HEX


def trace_id(traceparent: str | None) -> str | None:
    """The 32 hex digits that all messages of one request share."""
    found = _TRACEPARENT.fullmatch(traceparent or "")
    return found[1] if found else None


@contextmanager
def root_span(
    name: str, traceparent: str | None, attributes: Mapping[str, str | int | float] | None = None
) -> Iterator[str | None]:
    """The span of a whole request; gives the traceparent to publish under.

    Not sampled: no span is made and ``traceparent`` comes back as it is.
    """
    if not is_sampled(traceparent):
        yield traceparent
        return
    with _tracer.start_as_current_span(
        name, _context(traceparent), SpanKind.SERVER, attributes=dict(attributes or {})
    ) as span:
        yield _traceparent(span, traceparent)


def sent(traceparent: str, subject: str, message: Message, size: int) -> str:
    """Make the PRODUCER span of a sampled message; returns the traceparent to put on the wire."""
    template = _template(type(message))
    span = _tracer.start_span(
        f"send {template}",
        _context(traceparent),
        SpanKind.PRODUCER,
        attributes=_attributes("send", subject, template, size),
    )
    span.end()
    return _traceparent(span, traceparent) or traceparent


@contextmanager
def received(
    traceparent: str, subject: str, message: Message, size: int, queue: str | None
) -> Iterator[str]:
    """The CONSUMER span around the handler of a sampled message; gives its traceparent."""
    template = _template(type(message))
    attributes = _attributes("process", subject, template, size)
    if queue:
        attributes["messaging.consumer.group.name"] = queue
    with _tracer.start_as_current_span(
        f"process {template}", _context(traceparent), SpanKind.CONSUMER, attributes=attributes
    ) as span:
        yield _traceparent(span, traceparent) or traceparent


def _template(message: type[Message]) -> str:
    """The subject template, so that all requests share a name; a reply has its schema id."""
    entry = BY_MESSAGE.get(message)
    return entry.subject if entry else message.schema_id


def _attributes(operation: str, subject: str, template: str, size: int) -> dict[str, str | int]:
    return {
        "messaging.system": "nats",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": subject,
        "messaging.destination.template": template,
        "messaging.message.body.size": size,
    }


def _context(traceparent: str | None) -> context.Context:
    """The remote parent; none when ``traceparent`` is not one."""
    found = _TRACEPARENT.fullmatch(traceparent or "")
    if found is None:
        return context.Context()
    parent = SpanContext(
        trace_id=int(found[1], 16),
        span_id=int(found[2], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(found[3], 16)),
    )
    return trace.set_span_in_context(NonRecordingSpan(parent), context.Context())


def _traceparent(span: Span, otherwise: str | None) -> str | None:
    here = span.get_span_context()
    if not here.is_valid:
        return otherwise
    return f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags:02x}"
