"""Reading the past from account HISTORY, which sees streams and nothing else.

Messages come by batched direct gets: no consumer is created on the server, so a reader that dies
leaves nothing behind and nobody can make the server deliver to somebody else. A reader holds one
batch at a time. Where a stream has dropped messages before they were read, ``on_gap`` is told.

    async with History(url, key_file) as history:
        async for stored in history.read("REQUESTS"):
            decoded = decode_stored(stored)
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from nats.aio.msg import Msg

from bus import codec
from bus.endpoint import log
from bus.errors import StreamUnavailable
from bus.jetstream import Asking
from bus.permissions import stream_info
from bus.subjects import PREFIX

#: One batch ends at whichever comes first (but holds at least one message, of up to 8 MB).
BATCH_MESSAGES_MAX: Final = 512
BATCH_BYTES_MAX: Final = 1024 * 1024
#: Subjects that the server lets one question be about, and how it says that there are more.
SUBJECTS_MAX: Final = 1024
_TOO_MANY: Final = "status 413"
LOOK_BACK: Final = 100_000
POLL_MIN_S: Final = 0.01
POLL_MAX_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Stored:
    """One message of a stream. ``subject`` is logical; ``time_ms`` is the server's wall clock."""

    seq: int
    time_ms: int
    subject: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages ``first_seq`` to ``last_seq`` were gone before they were read."""

    stream: str
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class StreamState:
    """``last_seq`` is 0 as long as nothing was ever stored; a limit of 0 means none."""

    first_seq: int
    last_seq: int
    messages: int
    bytes: int
    bytes_max: int = 0
    age_max_s: int = 0


def decode_stored(stored: Stored) -> codec.Decoded:
    """The event in ``stored`` with its envelope; raises ``MalformedMessage``."""
    return codec.decode(stored.data)


class History(Asking):
    """A reader of streams. Raises ``StreamUnavailable`` when a stream or JetStream is away."""

    def __init__(
        self,
        url: str,
        key_file: Path | None = None,
        *,
        source: str = "history",
        prefix: str = PREFIX,
        on_gap: Callable[[Gap], None] | None = None,
    ) -> None:
        super().__init__("history", url, key_file, source)
        self._prefix = prefix
        self._on_gap = on_gap or _log_gap

    async def state(self, stream: str) -> StreamState:
        """What ``stream`` holds now."""
        answers = await self._questions.ask(stream, stream_info(stream), b"", one=True)
        values = json.loads(answers[0].data) if answers else {"error": {}}
        if "error" in values:
            raise StreamUnavailable(f"{stream}: {values['error'].get('description')}")
        state, limits = values["state"], values["config"]
        return StreamState(
            state["first_seq"],
            state["last_seq"],
            state["messages"],
            state["bytes"],
            max(0, limits.get("max_bytes", 0)),
            limits.get("max_age", 0) // 1_000_000_000,
        )

    async def last_seq(self, stream: str) -> int:
        """The sequence of the newest message; 0 for a stream that never had one."""
        return (await self.state(stream)).last_seq

    async def read(
        self, stream: str, *, start_seq: int = 1, subject: str | None = None
    ) -> AsyncIterator[Stored]:
        """From ``start_seq`` to what is the newest message now; ``subject`` may have wildcards."""
        end_seq = await self.last_seq(stream)
        next_seq = start_seq
        while next_seq <= end_seq:
            batch = await self._get(stream, next_seq, subject)
            for stored in batch:
                if stored.seq > end_seq:
                    return
                yield stored
            if not batch:
                return
            next_seq = batch[-1].seq + 1

    async def first_from(self, stream: str, seq: int) -> Stored | None:
        """The oldest message that is kept from ``seq`` on; None when none follows."""
        wanted = {"seq": seq, "next_by_subj": ">"}
        address, question = f"$JS.API.DIRECT.GET.{stream}", json.dumps(wanted).encode()
        messages = await self._questions.ask(stream, address, question, one=True)
        return self._stored(messages[0]) if messages else None

    async def last_of_each(self, stream: str, subject: str, up_to_seq: int) -> list[Stored]:
        """The last message of each subject that matches, up to ``up_to_seq``, oldest first.

        Beyond ``SUBJECTS_MAX`` subjects the server refuses; then the last ``LOOK_BACK`` messages
        are read instead, so whoever was silent for longer is missing.
        """
        wanted = {
            "multi_last": [self._prefix + subject.removeprefix(PREFIX)],
            "up_to_seq": up_to_seq,
        }
        address, question = f"$JS.API.DIRECT.GET.{stream}", json.dumps(wanted).encode()
        try:
            messages = await self._questions.ask(stream, address, question, one=False)
        except StreamUnavailable as error:
            if _TOO_MANY not in str(error):
                raise
            return await self._look_back(stream, subject, up_to_seq)
        return sorted(map(self._stored, messages), key=lambda stored: stored.seq)

    async def _look_back(self, stream: str, subject: str, up_to_seq: int) -> list[Stored]:
        last: dict[str, Stored] = {}
        start_seq = max(1, up_to_seq - LOOK_BACK)
        async for stored in self.read(stream, start_seq=start_seq, subject=subject):
            if stored.seq > up_to_seq:
                break
            last[stored.subject] = stored
        return sorted(last.values(), key=lambda stored: stored.seq)

    async def follow(
        self, stream: str, *, start_seq: int | None = None, subject: str | None = None
    ) -> AsyncIterator[Stored]:
        """From ``start_seq`` (default: what is stored after now) on, for ever.

        Asks again every 10 to 200 ms while nothing comes, and keeps trying while the server is
        away. A stream that began anew (memory streams, after a restart) is read from its start.
        """
        next_seq = await self.last_seq(stream) + 1 if start_seq is None else start_seq
        pause_s = POLL_MIN_S
        while True:
            batch: list[Stored] = []
            try:
                last_seq = await self.last_seq(stream)
                if last_seq < next_seq - 1:
                    log.warning("%s began anew; reading it from its start", stream)
                    next_seq = 1
                if last_seq >= next_seq:
                    batch = await self._get(stream, next_seq, subject)
                    next_seq = batch[-1].seq + 1 if batch else last_seq + 1
            except StreamUnavailable as error:
                log.debug("follow: %s", error)
            for stored in batch:
                yield stored
            pause_s = POLL_MIN_S if batch else min(pause_s * 2, POLL_MAX_S)
            if not batch:
                await asyncio.sleep(pause_s)

    async def _get(self, stream: str, start_seq: int, subject: str | None) -> list[Stored]:
        """The next batch; empty when nothing from ``start_seq`` on matches."""
        wanted: dict[str, Any] = {
            "batch": BATCH_MESSAGES_MAX,
            "max_bytes": BATCH_BYTES_MAX,
            "seq": start_seq,
        }
        if subject is not None:
            wanted["next_by_subj"] = self._prefix + subject.removeprefix(PREFIX)
        address, question = f"$JS.API.DIRECT.GET.{stream}", json.dumps(wanted).encode()
        messages = await self._questions.ask(stream, address, question, one=False)
        batch = [self._stored(m) for m in messages]
        if not batch or batch[0].seq > start_seq:
            await self._report_gap(stream, start_seq)
        return batch

    def _stored(self, message: Msg) -> Stored:
        headers = message.headers or {}
        subject = headers["Nats-Subject"]
        if subject.startswith(self._prefix + "."):
            subject = PREFIX + subject[len(self._prefix) :]
        stored_at = datetime.fromisoformat(headers["Nats-Time-Stamp"])
        return Stored(
            int(headers["Nats-Sequence"]), int(stored_at.timestamp() * 1000), subject, message.data
        )

    async def _report_gap(self, stream: str, wanted_seq: int) -> None:
        """A jump may come from the filter; what was dropped lies below the stream's first."""
        first_seq = (await self.state(stream)).first_seq
        if first_seq > wanted_seq:
            self._on_gap(Gap(stream, wanted_seq, first_seq - 1))


def _log_gap(gap: Gap) -> None:
    log.warning("%s: messages %d to %d are gone", gap.stream, gap.first_seq, gap.last_seq)
