"""The past as a process: questions over a real server, under the generated permissions."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from bus import jetstream, subjects
from bus.bus import Received
from bus.errors import NoResponders, StreamUnavailable
from bus.history import History, StreamState, decode_stored
from bus.nats_bus import NatsBus
from bus.provision import provision
from bus.streams import BY_NAME, ON_DISK, Stream
from bus.subjects import PREFIX
from components.host.settings import HostSettings
from components.replay import auditor, exports
from components.replay.audit import Audit
from components.replay.bundle_reader import open_bundle
from components.replay.lives import Lives
from components.replay.service import ReplayService
from components.replay.settings import ReplaySettings
from components.replay.storing import Storing
from schemas.engine import EngineLoadReported
from schemas.examples import example
from schemas.fleet import FleetJoined, ShowComponent, ShowComponentReply
from schemas.history import ShowHistory, ShowHistoryReply
from schemas.past import (
    ExplainRequest,
    ExplainRequestReply,
    ExportPast,
    ExportPastReply,
    ReadPast,
    ReadPastReply,
    ReplayJournal,
    ReplayJournalReply,
    ShowInstant,
    ShowInstantReply,
)
from schemas.request import RequestEvent, RequestEventsBatched
from tests.support.host import testing_host
from tests.support.nats import NatsInTest, until
from tests.support.past import PastInMemory

MakeBus = Callable[..., Awaitable[NatsBus]]


@asynccontextmanager
async def replaying(
    server: NatsInTest, nats_bus: MakeBus, **settings: object
) -> AsyncIterator[ReplayService]:
    bus = await nats_bus("replay", "replay-0")
    key = str(server.key_file("history", "history"))
    host = testing_host(
        "replay", bus=bus, settings=HostSettings(instance="replay-0", nats_url=server.url)
    )
    chosen = ReplaySettings.model_validate({"history_key_file": key, **settings})
    service = ReplayService(host, chosen)
    await service.start()
    try:
        yield service
    finally:
        await service.drain(1.0)
        await service.stop()
        await bus.flush()  # else the server may still send questions to who has left
        await host.tasks.stop()
    assert host.faults == []


def steps(name: str, at_ms: int) -> RequestEventsBatched:
    event = RequestEvent(
        request_id=name,
        step="accepted",
        attempt=1,
        at_ms=at_ms,
        seq=1,
        detail={"model": "m", "tenant": "t", "prompt_tokens": 3},
    )
    return RequestEventsBatched(events=(event,))


async def filled(server: NatsInTest, nats_bus: MakeBus) -> None:
    await server.provision()
    registry = await nats_bus("registry", "registry-0")
    worker = await nats_bus("worker", "decode-0")
    gateway = await nats_bus("gateway", "gateway-0")
    joined = example(FleetJoined, instance="decode-0", at_ms=1_000)
    registry.publish(subjects.fleet_joined("decode-0"), joined)
    for number in range(50):
        load = example(EngineLoadReported, engine="decode-0", running=number, at_ms=1_000 + number)
        worker.publish(subjects.engine_load_reported("decode-0"), load)
        gateway.publish(
            subjects.request_events_batched("gateway-0"), steps(f"r{number}", 1_000 + number)
        )
    for bus in (registry, worker, gateway):
        await bus.flush()
    key = server.key_file("history", "history")
    async with History(server.url, key) as history:
        async with asyncio.timeout(10):
            while (await history.last_seq("REQUESTS")) < 50:  # noqa: ASYNC110  (the server's)
                await asyncio.sleep(0.01)


async def test_every_question_has_its_answer(nats_server: NatsInTest, nats_bus: MakeBus):
    await filled(nats_server, nats_bus)
    operator = await nats_bus("operator", "operator")
    async with replaying(nats_server, nats_bus):
        then = await operator.ask(
            subjects.show_instant(), ShowInstant(at_ms=1_020), ShowInstantReply, timeout_s=5
        )
        assert [p.instance for p in then.processes] == ["decode-0"]
        assert then.engines[0].load is not None
        assert then.engines[0].load.running == 20
        why = await operator.ask(
            subjects.explain_request(),
            ExplainRequest(request_id="r7"),
            ExplainRequestReply,
            timeout_s=5,
        )
        assert (why.found, why.tenant, why.outcome) == (True, "t", "running")
        read = await operator.ask(
            subjects.read_past(),
            ReadPast(from_ms=1_010, to_ms=1_019, streams=("REQUESTS",)),
            ReadPastReply,
            timeout_s=5,
        )
        assert [e.at_ms for e in read.events] == list(range(1_010, 1_020))
        again = await operator.ask(
            subjects.replay_journal(), ReplayJournal(), ReplayJournalReply, timeout_s=5
        )
        assert (again.refusal, again.lives) == (None, ())


async def test_a_question_that_cannot_be_answered_is_refused_with_a_code(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await filled(nats_server, nats_bus)
    operator = await nats_bus("operator", "operator")
    async with replaying(nats_server, nats_bus):
        refused = await operator.ask(
            subjects.replay_journal(),
            ReplayJournal(route="nonsense"),
            ReplayJournalReply,
            timeout_s=5,
        )
        assert refused.refusal == "bad_policy"
        assert "least_loaded" in refused.detail
        lost = await operator.ask(
            subjects.read_past(),
            ReadPast(from_ms=0, to_ms=1, cursor="x"),
            ReadPastReply,
            timeout_s=5,
        )
        assert lost.refusal == "bad_cursor"


async def test_a_bundle_is_fetched_in_pieces(
    nats_server: NatsInTest,
    nats_bus: MakeBus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(exports, "PIECE_BYTES", 10_000)
    await filled(nats_server, nats_bus)
    operator = await nats_bus("operator", "operator")
    async with replaying(nats_server, nats_bus):
        asked, data = ExportPast(from_ms=1_010, to_ms=1_030), b""
        while True:
            reply = await operator.ask(subjects.export_past(), asked, ExportPastReply, timeout_s=10)
            assert (reply.refusal, reply.offset) == (None, len(data))
            data += reply.data
            if len(data) == reply.total:
                break
            asked = asked.model_copy(update={"bundle": reply.bundle, "offset": len(data)})
        assert asked.offset > 0
        (tmp_path / "b.zip").write_bytes(data)
        assert (await open_bundle(tmp_path / "b.zip").state("REQUESTS")).messages == 21
        gone = await operator.ask(
            subjects.export_past(),
            ExportPast(bundle="another", offset=5),
            ExportPastReply,
            timeout_s=10,
        )
        assert gone.refusal == "no_such_bundle"


async def test_the_index_follows_what_is_written(nats_server: NatsInTest, nats_bus: MakeBus):
    await filled(nats_server, nats_bus)
    gateway = await nats_bus("gateway", "gateway-1")
    async with replaying(nats_server, nats_bus, requests_max=40) as service:
        host = service._host
        await until(lambda: service._indexer.last_seq == 50, "the index has caught up")
        gateway.publish(subjects.request_events_batched("gateway-1"), steps("new", 2_000))
        await until(lambda: bool(service._index.places("new")), "the new request is in it")
        service._count()
        assert host.counters["indexed_requests"] == 40
        assert host.counters["index_forgotten_total"] == 11


async def test_without_streams_the_past_cannot_be_read_and_is_asked_again(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    operator = await nats_bus("operator", "operator")
    async with replaying(nats_server, nats_bus):
        for _ in range(2):
            then = await operator.ask(
                subjects.show_instant(), ShowInstant(at_ms=1), ShowInstantReply, timeout_s=10
            )
            assert then.refusal == "history_unavailable"
        await filled(nats_server, nats_bus)
        then = await operator.ask(
            subjects.show_instant(), ShowInstant(at_ms=1_020), ShowInstantReply, timeout_s=10
        )
        assert then.refusal is None


async def test_nobody_answers_when_it_is_gone(nats_server: NatsInTest, nats_bus: MakeBus):
    operator = await nats_bus("operator", "operator")
    async with replaying(nats_server, nats_bus):
        pass
    try:
        await operator.ask(
            subjects.show_instant(), ShowInstant(at_ms=1), ShowInstantReply, timeout_s=5
        )
    except NoResponders:
        return
    raise AssertionError("somebody answered")


# The audit.


async def history(operator: NatsBus) -> ShowHistoryReply:
    return await operator.ask(
        subjects.show_history(), ShowHistory(), ShowHistoryReply, timeout_s=10
    )


async def becomes(
    operator: NatsBus, condition: Callable[[ShowHistoryReply], bool]
) -> ShowHistoryReply:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(NoResponders):  # it is just coming back
                if condition(shown := await history(operator)):
                    return shown
            await asyncio.sleep(0.1)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """An auditor that waits for little, also for streams that do not answer."""
    monkeypatch.setattr(jetstream, "SILENCE_S", 1.0)
    monkeypatch.setattr(auditor, "TICK_S", 0.05)
    monkeypatch.setattr(auditor, "ASK_S", 0.2)
    monkeypatch.setattr(auditor, "ANSWER_S", 0.1)
    monkeypatch.setattr(auditor, "Audit", functools.partial(Audit, grace_s=1.5))
    monkeypatch.setattr(auditor, "Lives", functools.partial(Lives, gone_after_s=1.0))
    hasty_storing = functools.partial(Storing, patience_s=0.2, answer_s=0.5)
    monkeypatch.setattr(auditor, "Storing", hasty_storing)


@pytest.mark.usefixtures("hasty")
async def test_what_was_published_and_not_stored_is_told_here_and_in_the_fleet_s_history(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await filled(nats_server, nats_bus)
    operator, gateway = (
        await nats_bus("operator", "operator"),
        await nats_bus("gateway", "gateway-1"),
    )
    batch = subjects.request_events_batched("gateway-1")
    async with replaying(nats_server, nats_bus) as service:
        gateway.publish(batch, steps("a", 1))
        gateway._seqs["request.batch.v1"] += 3  # as if the bus had dropped them
        gateway.publish(batch, steps("b", 2))
        shown = await becomes(operator, lambda h: h.gaps_total > 0)
        (gap,) = shown.gaps
        assert (gap.stream, gap.source) == ("REQUESTS", "gateway-1")
        assert (gap.first_seq, gap.last_seq) == (2, 4)
        assert (shown.state, service.heartbeat()["state"]) == ("ok", "ready")
        key = nats_server.key_file("history", "history")
        async with History(nats_server.url, key) as kept:
            async with asyncio.timeout(10):
                async for stored in kept.follow("FLEET", start_seq=1):
                    if decode_stored(stored).message == gap:
                        break
    # Another life of the auditor reads it there, and does not find it once more.
    async with replaying(nats_server, nats_bus):
        await becomes(operator, lambda h: all(s.audited_seq == s.last_seq for s in h.streams))
        await asyncio.sleep(2.0)
        assert (await history(operator)).gaps_total == 0


@dataclass(frozen=True, slots=True)
class Bounded(Stream):
    """One that takes ``messages_max`` messages (-1: any number) and refuses what follows."""

    messages_max: int = -1

    def config(self, prefix: str = PREFIX, replicas: int = 1) -> dict[str, Any]:
        wanted = BY_NAME[self.name].config(prefix, replicas)
        return {**wanted, "discard": "new", "max_msgs": self.messages_max}


@pytest.mark.usefixtures("hasty")
async def test_one_stream_that_takes_nothing_is_noticed_while_the_others_store(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await filled(nats_server, nats_bus)
    operator, worker = await nats_bus("operator", "operator"), await nats_bus("worker", "decode-1")
    await answers_what_it_published(worker)
    provisioner = nats_server.key_file("provisioner", "provisioner")

    async def bound(messages_max: int) -> None:
        stream = Bounded(**asdict(BY_NAME["ENGINE_STATE"]), messages_max=messages_max)
        await provision(nats_server.url, provisioner, wanted=[stream])

    def load() -> None:
        worker.publish(
            subjects.engine_load_reported("decode-1"),
            example(EngineLoadReported, engine="decode-1"),
        )

    async with replaying(nats_server, nats_bus) as service:
        load()
        now = await becomes(operator, lambda h: all(s.audited_seq == s.last_seq for s in h.streams))
        await bound(next(s.messages for s in now.streams if s.name == "ENGINE_STATE"))
        for _ in range(12):
            load()
        shown = await becomes(operator, lambda h: h.state == "not_storing")
        assert shown.why.startswith("ENGINE_STATE: 12 events")
        assert (shown.waiting, shown.gaps_total) == (12, 0)
        assert service.heartbeat()["state"] == "degraded"
        # FLEET stores: what is missing there is told meanwhile.
        registry = await nats_bus("registry", "registry-1")
        for skipped in (0, 3):
            registry._seqs["fleet.joined.v1"] += skipped
            joined = example(FleetJoined, instance="decode-1", at_ms=1_000)
            registry.publish(subjects.fleet_joined("decode-1"), joined)
        shown = await becomes(operator, lambda h: h.gaps_total > 0)
        assert (shown.state, shown.gaps[0].stream) == ("not_storing", "FLEET")
        # A restart alone changes nothing, and nobody is told that it did.
        await nats_server.kill()
        await until(lambda: service._auditor.state == "away", "the streams are away")
        await nats_server.start()
        await until(lambda: service._auditor.state != "away", "they are back")
        assert service._auditor.state == "not_storing"
        # There is room again: a probe shows it, and what was refused is told.
        await bound(-1)
        shown = await becomes(operator, lambda h: h.state == "ok" and h.gaps_total > 1)
        gap = shown.gaps[-1]
        assert (gap.stream, gap.last_seq - gap.first_seq + 1) == ("ENGINE_STATE", 12)


async def test_how_the_history_is_is_told_while_streams_are_silent_and_others_wait(
    nats_server: NatsInTest, nats_bus: MakeBus, monkeypatch: pytest.MonkeyPatch
):
    await filled(nats_server, nats_bus)
    operator = await nats_bus("operator", "operator")

    async def silent(_: History, stream: str) -> StreamState:
        await asyncio.sleep(jetstream.SILENCE_S)
        raise StreamUnavailable(stream)

    async with replaying(nats_server, nats_bus) as service:
        before = await becomes(operator, lambda h: len(h.streams) == len(ON_DISK))
        monkeypatch.setattr(History, "state", silent)
        async with service._turn:  # as while a long answer is being made
            shown = await operator.ask(
                subjects.show_history(), ShowHistory(), ShowHistoryReply, timeout_s=2
            )
        assert [s.name for s in shown.streams] == [s.name for s in before.streams]


async def answers_what_it_published(bus: NatsBus) -> None:
    """As every process does."""

    def answer(question: Received[ShowComponent]) -> None:
        bus.respond(question, example(ShowComponentReply, published=dict(bus.sent)))

    await bus.subscribe(subjects.show_component("all"), ShowComponent, answer)


@pytest.mark.usefixtures("hasty")
async def test_one_loss_in_a_quiet_stream_is_no_outage(nats_server: NatsInTest, nats_bus: MakeBus):
    await filled(nats_server, nats_bus)
    operator, worker = await nats_bus("operator", "operator"), await nats_bus("worker", "decode-1")
    await answers_what_it_published(worker)
    async with replaying(nats_server, nats_bus):
        worker._seqs["engine.load_reported.v1"] += 2  # as if the bus had dropped its only ones
        shown = await becomes(operator, lambda h: h.gaps_total > 0 or h.state != "ok")
        assert shown.state == "ok"
        assert (shown.gaps[0].stream, shown.gaps[0].last_seq) == ("ENGINE_STATE", 2)


@pytest.mark.usefixtures("hasty")
async def test_who_dies_while_the_server_is_away_leaves_a_tail_that_is_told(
    nats_server: NatsInTest, nats_bus: MakeBus
):
    await filled(nats_server, nats_bus)
    operator = await nats_bus("operator", "operator")
    staying, dying = await nats_bus("worker", "decode-1"), await nats_bus("worker", "decode-2")
    for worker in (staying, dying):
        await answers_what_it_published(worker)
    async with replaying(nats_server, nats_bus) as service:
        lives = service._auditor._lives._answered_s
        await until(lambda: len(lives) == 2, "both have answered")
        await nats_server.kill()
        await dying.close()
        await nats_server.start()
        shown = await becomes(operator, lambda h: h.tails_total > 0)
        assert [tail.source for tail in shown.tails] == ["decode-2"]
        assert service._host.counters["tails_lost_total"] == 1


@pytest.mark.usefixtures("hasty")
async def test_streams_that_cannot_be_asked_are_away_and_come_back(
    nats_server: NatsInTest, nats_bus: MakeBus, monkeypatch: pytest.MonkeyPatch
):
    await filled(nats_server, nats_bus)
    operator = await nats_bus("operator", "operator")
    async with replaying(nats_server, nats_bus) as service:
        await becomes(operator, lambda h: all(s.audited_seq == s.last_seq for s in h.streams))
        await nats_server.kill()
        await until(lambda: service._auditor.state == "away", "the streams are away")
        await nats_server.start()
        await until(lambda: service._auditor.state == "ok", "they are back")
        shown = await becomes(operator, lambda h: h.waiting == 0)
        assert shown.gaps_total == 0


def test_an_envelope_is_read_without_its_fields():
    stored = PastInMemory().add("S", "s", steps("a", 1), source="g", epoch=7, seq=9)
    assert auditor.envelope(stored.data) == (("request.batch.v1", "g", 7), 9)
    for data in (b"", b"rubbish", b"\x91\x01", stored.data[:8]):
        assert auditor.envelope(data) is None
