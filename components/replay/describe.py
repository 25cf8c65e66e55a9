"""What stood on a stream, told in a line each and as plain values. Pure.

Content never appears: whatever is bytes in a message (bodies, hashes, packed cores) is told by its
length, and of token frames only how much they carried.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bus import codec, subjects
from bus.endpoint import matcher
from bus.errors import MalformedMessage
from schemas.engine import EngineLoadReported, EngineStatesReceived, KvPagesChanged
from schemas.fleet import FleetExpired, FleetJoined, FleetLeft, FleetRegistered
from schemas.frames import Entry
from schemas.journal import JournalAppended
from schemas.message import Message
from schemas.request import RequestEvent, RequestEventsBatched

HASH_BYTES: Final = 8
_is_frame: Final = matcher(subjects.frames(subjects.ANY, subjects.ANY))


@dataclass(frozen=True, slots=True)
class Told:
    """One thing that happened. ``plain`` goes out as JSON, ``text`` to people."""

    what: str
    source: str
    text: str
    plain: dict[str, Any] = field(default_factory=dict)
    request_id: str | None = None


def told(subject: str, data: bytes) -> list[Told]:
    """What one stored message says; several things when it is a batch. Never raises."""
    try:
        if _is_frame(subject):
            return _frame(subject, data)
        decoded = codec.decode(data)
    except MalformedMessage as error:
        unknown = {"error": str(error), "bytes": len(data)}
        return [Told("unknown", "", f"{len(data)} bytes: {error}", unknown)]
    except (TypeError, ValueError, IndexError) as error:
        # A frame whose entries are not what frames.py says.
        unknown = {"error": repr(error), "bytes": len(data)}
        return [Told("unknown", "", f"{len(data)} bytes: {error!r}", unknown)]
    message = decoded.message
    if isinstance(message, RequestEventsBatched):
        return [_step(decoded.source, event) for event in message.events]
    plain = {
        "schema": message.schema_id,
        "epoch": decoded.epoch,
        "seq": decoded.seq,
        **without_bytes(message.model_dump()),
    }
    if isinstance(message, JournalAppended):
        plain["inputs"] = inputs_of(message)
    request_id = plain.get("request_id")
    return [Told(message.schema_id, decoded.source, _sentence(message), plain, request_id)]


def without_bytes(value: Any) -> Any:
    """The value with every piece of bytes replaced by ``{"bytes": its length}``."""
    match value:
        case bytes():
            return {"bytes": len(value)}
        case Mapping():
            return {str(key): without_bytes(inner) for key, inner in value.items()}
        case list() | tuple():
            return [without_bytes(inner) for inner in value]
        case _:
            return value


def inputs_of(entry: JournalAppended) -> list[str]:
    """The kinds of what a core consumed, in order, without what stood in it."""
    try:
        inputs = codec.unpack(entry.inputs)
        return [_input(item) for item in inputs]
    except (MalformedMessage, TypeError, IndexError, ValueError):
        return [f"{len(entry.inputs)} bytes that are no list of inputs"]


def _input(item: Any) -> str:
    match item:
        case ["m", schema_id, _]:
            return str(schema_id)
        case ["r", schema_id, source, epoch, seq]:
            return f"{schema_id} {source}@{epoch}#{seq}"
        case ["t", *_]:
            return "tick"
        case [kind, *_]:
            return f"unknown {str(kind)[:20]!r}"
        case _:
            raise ValueError("not an input")


def _step(source: str, event: RequestEvent) -> Told:
    detail = _pairs(event.detail.items())
    text = f"{event.request_id} attempt={event.attempt}"
    plain = {"schema": RequestEventsBatched.schema_id, **without_bytes(event.model_dump())}
    return Told(event.step, source, f"{text} {detail}".rstrip(), plain, event.request_id)


def _frame(subject: str, data: bytes) -> list[Told]:
    epoch, seq, entries = codec.unpack_frame(data)
    source = subject.rsplit(".", 1)[1]
    return [_entry(source, epoch, seq, entry) for entry in entries]


def _entry(source: str, epoch: int, seq: int, entry: Entry) -> Told:
    request_id, attempt, choice, first, token_ids, text, extra, finish = entry
    plain = {
        "epoch": epoch,
        "seq": seq,
        "request_id": request_id,
        "attempt": attempt,
        "choice": choice,
        "first_index": first,
        "tokens": len(token_ids),
        "chars": len(text),
        "extra": sorted(extra) if extra else [],
        "finish": finish,
    }
    kind = "tokens" if token_ids or text or finish else "high_water"
    said = f"{request_id} choice={choice} first={first} tokens={len(token_ids)} chars={len(text)}"
    if finish:
        said += f" finish={finish[0]}"
    return Told(kind, source, f"{said} attempt={attempt}", plain, request_id)


def _sentence(message: Message) -> str:  # noqa: PLR0911  (a line for each kind)
    match message:
        case EngineLoadReported():
            return (
                f"{message.engine} {message.role} running={message.running}"
                f" waiting={message.waiting} queued_tokens={message.queued_tokens}"
                f" kv_pages={message.kv_pages_used}/{message.kv_pages_total}"
                f" leases={message.leases} watermark={message.watermark}"
            )
        case EngineStatesReceived(states=[*before, last]):
            more = f" and {len(before)} before it" if before else ""
            return (
                f"{message.engine_id} {last.scheduling_mode}"
                f" pending_tokens={last.pending_tokens_total}"
                f" latency_pred_ms={last.latency_pred_ms:g}"
                f" capacity={last.engine_capacity:g} from={last.source_address}{more}"
            )
        case KvPagesChanged():
            return (
                f"{message.engine} stored={len(message.stored) // HASH_BYTES}"
                f" removed={len(message.removed) // HASH_BYTES}"
                f"{' cleared' if message.cleared else ''} first_change={message.first_change}"
            )
        case JournalAppended():
            inputs = ", ".join(inputs_of(message))
            return f"{message.owner} entry {message.index}: {inputs or 'nothing'}"
        case FleetJoined():
            return f"{message.instance} joined as {message.component}, pid {message.pid}"
        case FleetLeft(lost=True):
            return f"{message.instance} lost after {message.silent_ms} ms of silence"
        case FleetLeft():
            return f"{message.instance} left"
        case FleetRegistered():
            kv = f", KV at {message.kv_address}" if message.kv_address else ""
            return f"{message.instance} registered by {message.by} as {message.role}{kv}"
        case FleetExpired():
            return f"{message.instance} ({message.role}) expired, {message.silent_ms} ms silent"
        case _:
            return _pairs(message.model_dump().items())


def _pairs(items: Iterable[tuple[str, Any]]) -> str:
    return " ".join(f"{key}={_short(without_bytes(value))}" for key, value in items)


def _short(value: Any) -> str:
    match value:
        case {"bytes": length}:
            return f"({length} bytes)"
        case float():
            return f"{value:g}"
        case _:
            text = str(value)
            return text if len(text) <= 200 else text[:200] + "..."
