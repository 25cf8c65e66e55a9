"""The past as a process: questions over a real server, under the generated permissions."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bus import subjects
from bus.errors import NoResponders
from bus.history import History
from bus.nats_bus import NatsBus
from components.host.settings import HostSettings
from components.replay import exports
from components.replay.bundle import open_bundle
from components.replay.service import ReplayService
from components.replay.settings import ReplaySettings
from schemas.engine import EngineLoadReported
from schemas.examples import example
from schemas.fleet import FleetJoined
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
