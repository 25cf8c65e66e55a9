"""A past in memory: what was published, in order, as a server would have kept it."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from bus import codec
from bus.endpoint import matcher
from bus.errors import StreamUnavailable
from bus.history import Stored, StreamState
from components.replay.bundle import BundleWriter
from schemas.engine import EngineLoadReported
from schemas.examples import example
from schemas.message import Message


class PastInMemory:
    """Keeps the promise of ``components.replay.past.Past``; ``reads`` counts messages given out."""

    def __init__(self, **streams: Sequence[Stored]) -> None:
        self.streams: dict[str, list[Stored]] = {n: list(s) for n, s in streams.items()}
        self.reads = 0
        self._seqs: dict[tuple[str, str], int] = {}

    def add(
        self,
        stream: str,
        subject: str,
        message: Message,
        *,
        source: str = "x-0",
        epoch: int = 1,
        at_ms: int = 0,
        seq: int | None = None,
    ) -> Stored:
        """Keep one message; ``at_ms`` is the server's time, ``seq`` that of the envelope."""
        mine = (source, message.schema_id)
        self._seqs[mine] = seq or self._seqs.get(mine, 0) + 1
        data = codec.encode(
            message, traceparent=None, source=source, epoch=epoch, seq=self._seqs[mine]
        )
        kept = self.streams.setdefault(stream, [])
        stored = Stored((kept[-1].seq if kept else 0) + 1, at_ms, subject, data)
        kept.append(stored)
        return stored

    async def state(self, stream: str) -> StreamState:
        kept = self._of(stream)
        if not kept:
            return StreamState(0, 0, 0, 0)
        return StreamState(kept[0].seq, kept[-1].seq, len(kept), sum(len(s.data) for s in kept))

    async def read(
        self, stream: str, *, start_seq: int = 1, subject: str | None = None
    ) -> AsyncIterator[Stored]:
        matches = matcher(subject) if subject else lambda _: True
        for stored in list(self._of(stream)):
            if stored.seq >= start_seq and matches(stored.subject):
                self.reads += 1
                yield stored

    async def first_from(self, stream: str, seq: int) -> Stored | None:
        self.reads += 1
        return next((s for s in self._of(stream) if s.seq >= seq), None)

    async def last_of_each(self, stream: str, subject: str, up_to_seq: int) -> list[Stored]:
        matches = matcher(subject)
        last = {s.subject: s for s in self._of(stream) if s.seq <= up_to_seq and matches(s.subject)}
        return sorted(last.values(), key=lambda s: s.seq)

    def _of(self, stream: str) -> list[Stored]:
        if stream not in self.streams:
            raise StreamUnavailable(f"{stream}: stream not found")
        return self.streams[stream]


def reported() -> PastInMemory:
    """40 reports of three engines."""
    made = PastInMemory(FLEET=(), ENGINE_STATE=(), REQUESTS=(), JOURNAL=())
    for number in range(40):
        name = f"engine-{number % 3}"
        load = example(EngineLoadReported, engine=name, at_ms=1000 + number)
        made.add("ENGINE_STATE", f"yard.evt.engine.load_reported.{name}", load, at_ms=5000)
    return made


async def written_bundle(path: Path) -> Path:
    """They, as a bundle."""
    made = reported()
    with BundleWriter(path, made_ms=9, from_ms=1000, to_ms=1040) as writer:
        for stream in made.streams:
            await writer.add(stream, made.read(stream))
    return path
