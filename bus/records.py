"""Records in key-value buckets, changed by compare-and-set on their revision.

A record is a small value under a raw name, in one of ``bus.streams.BUCKETS``. Every change names
the revision that it was decided on (0: there is none yet), so of two that change the same record
one is told ``RecordChanged``, whatever happens to processes in between. Buckets hold what shall be
known for long; who lives is not kept here, so that a JetStream election kills nobody.

    async with Records(url, key_file, source="registry-0") as records:
        record = await records.get("nodes", "node-1")
        await records.put("nodes", "node-1", value, revision=record.revision if record else 0)
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nats.aio.msg import Msg

from bus.errors import BusError, RecordChanged, RecordRefused, StreamUnavailable
from bus.jetstream import Asking
from bus.names import decode_name, encode_name
from bus.streams import BUCKETS, MIB

_BY_NAME: Final = {bucket.name: bucket for bucket in BUCKETS}
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
_OPERATION: Final = "KV-Operation"
_SUBJECT: Final = "Nats-Subject"
_SEQUENCE: Final = "Nats-Sequence"
#: What a record that was deleted leaves behind.
_DELETED: Final = ("DEL", "PURGE")
#: What one answer holds of a bucket's messages at most.
_BATCH: Final = {"batch": 256, "max_bytes": 4 * MIB}
#: A deletion takes all earlier values along; the marker goes too, once whoever reads or watches
#: the bucket has passed it. Else a bucket fills with what is not there, and takes nothing more.
MARKER_S: Final = 60
_DELETION: Final = {_OPERATION: "PURGE", "Nats-Rollup": "sub"}
_TTL: Final = {"Nats-TTL": f"{MARKER_S}s"}
#: JetStream's codes: for "wrong last sequence", and for a stream that was set up before
#: ``Bucket.config`` let messages have a time of their own.
_WRONG_SEQUENCE: Final = 10071
_NO_TTL: Final = 10166
#: Its codes for what it would refuse again, and what helps.
_REFUSALS: Final = {
    10054: "make the record smaller",
    10077: "remove records, or raise the bucket's max_bytes",
    10002: "give the account more of JetStream's space",
    10023: "give JetStream more space",
    10047: "give JetStream more space",
}


@dataclass(frozen=True, slots=True)
class Record:
    """One value as it stood when it was read. ``revision`` rises with each change of the bucket."""

    name: str
    value: bytes
    revision: int


class Records(Asking):
    """All buckets over one connection. Raises ``StreamUnavailable`` when JetStream is away.

    A change that JetStream would refuse again (full, too large) raises ``RecordRefused``, which is
    one of those.
    """

    def __init__(self, url: str, key_file: Path | None = None, *, source: str) -> None:
        """``source`` names whose permissions, and so whose inbox, are used."""
        super().__init__("records", url, key_file, encode_name(source))

    async def get(self, bucket: str, name: str) -> Record | None:
        """The newest value; None when there is none or it was deleted."""
        stream = _BY_NAME[bucket].stream
        address = f"$JS.API.DIRECT.GET.{stream}.{_subject(bucket, name)}"
        answers = await self._questions.ask(stream, address, b"", one=True)
        return next((r for m in answers if (r := _record(bucket, m)) is not None), None)

    async def all(self, bucket: str) -> list[Record]:
        """Every record of the bucket, by name."""
        # Not all at once: beyond 1024 subjects the server refuses. A record's later values follow
        # its earlier ones, so the last one that is read stands.
        found: dict[str, Record | None] = {}
        next_seq = 1
        while batch := await self._from(bucket, next_seq):
            found.update((_header(m, _SUBJECT), _record(bucket, m)) for m in batch)
            next_seq = int(_header(batch[-1], _SEQUENCE)) + 1
        there = (record for record in found.values() if record is not None)
        return sorted(there, key=lambda record: record.name)

    async def _from(self, bucket: str, seq: int) -> list[Msg]:
        """The next of what the bucket's stream holds from ``seq`` on; empty behind the last."""
        stream = _BY_NAME[bucket].stream
        wanted = {"next_by_subj": f"$KV.{bucket}.>", "seq": seq, **_BATCH}
        address, question = f"$JS.API.DIRECT.GET.{stream}", json.dumps(wanted).encode()
        return await self._questions.ask(stream, address, question, one=False)

    async def put(self, bucket: str, name: str, value: bytes, *, revision: int) -> int:
        """Change a record that still has ``revision`` (0: make a new one); the new revision.

        Raises ``RecordChanged`` when it has another one.
        """
        return await self._change(bucket, name, value, revision, {})

    async def delete(self, bucket: str, name: str, *, revision: int) -> None:
        """Delete a record that still has ``revision``; raises ``RecordChanged``."""
        try:
            await self._change(bucket, name, b"", revision, _DELETION | _TTL)
        except _NoTtl:
            await self._change(bucket, name, b"", revision, _DELETION)

    async def _change(
        self, bucket: str, name: str, value: bytes, revision: int, headers: dict[str, str]
    ) -> int:
        subject = _subject(bucket, name)
        expected = revision or await self._marker(bucket, name)
        headers = {_EXPECTED: str(expected), **headers}
        stream = _BY_NAME[bucket].stream
        [answer] = await self._questions.ask(stream, subject, value, one=True, headers=headers)
        told = json.loads(answer.data)
        if "error" in told:
            raise _error(bucket, name, revision, told["error"])
        return int(told["seq"])

    async def _marker(self, bucket: str, name: str) -> int:
        """A deleted record leaves a marker, behind which a new one begins; raises like ``put``."""
        stream = _BY_NAME[bucket].stream
        address = f"$JS.API.DIRECT.GET.{stream}.{_subject(bucket, name)}"
        answers = await self._questions.ask(stream, address, b"", one=True)
        if not answers:
            return 0
        if _record(bucket, answers[0]) is not None:
            raise RecordChanged(f"{bucket}/{name} exists")
        return int(_header(answers[0], _SEQUENCE))


class _NoTtl(StreamUnavailable):
    """The bucket knows no time to live yet: ``switchyard setup streams`` has it do so."""


def _error(bucket: str, name: str, revision: int, told: dict[str, Any]) -> BusError:
    """What it means that JetStream answered so."""
    code, why = told.get("err_code"), told.get("description")
    if code == _WRONG_SEQUENCE:
        return RecordChanged(f"{bucket}/{name} is not at revision {revision} any more")
    if code in _REFUSALS:
        return RecordRefused(f"{bucket}/{name} is not taken: {why}: {_REFUSALS[code]}")
    error = _NoTtl if code == _NO_TTL else StreamUnavailable
    return error(f"{_BY_NAME[bucket].stream}: {why}")


def _subject(bucket: str, name: str) -> str:
    return f"$KV.{bucket}.{encode_name(name)}"


def _record(bucket: str, message: Msg) -> Record | None:
    if (message.headers or {}).get(_OPERATION) in _DELETED:
        return None
    token = _header(message, _SUBJECT).removeprefix(f"$KV.{bucket}.")
    return Record(decode_name(token), message.data, int(_header(message, _SEQUENCE)))


def _header(message: Msg, name: str) -> str:
    """What the server says with every message that it kept."""
    return (message.headers or {})[name]
