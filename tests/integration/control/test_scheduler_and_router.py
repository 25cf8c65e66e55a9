"""Scheduler and router as services: bodies pass by the cores, the journal explains it all."""

import asyncio
from collections.abc import Callable

from bus import subjects
from bus.bus import Received
from bus.codec import Decoded
from bus.memory_bus import MemoryHub
from components.replay.recording import Recording
from components.router.service import Router
from components.router.settings import RouterSettings
from components.scheduler.service import Scheduler
from components.scheduler.settings import SchedulerSettings
from schemas.attempt import AttemptReported, RunAttempt
from schemas.catalogue import CATALOGUE
from schemas.engine import EngineLoadReported
from schemas.examples import CARD, HEARTBEAT, LOAD, example
from schemas.message import Message
from schemas.request import CancelRequest, RequestDispatched, RequestQueued, ScheduleRequest
from tests.support.host import HostInTest, connected_host

PAIR = (("prefill-0", "prefill"), ("decode-0", "decode"))


class Yard:
    """Both services, two idle workers that only report, and one who hears everything."""

    def __init__(self, scheduler: HostInTest, router: HostInTest, outside: HostInTest) -> None:
        self.hosts = (scheduler, router)
        self.outside = outside
        self.heard: list[Message] = []
        self.recording = Recording()

    async def listen(self) -> None:
        for entry in CATALOGUE:
            pattern = subjects.function_of(entry.message)(*([subjects.ANY] * len(entry.tokens)))
            if entry.kind != "ask":
                await self.outside.bus.subscribe(pattern, entry.message, self._hear)

    def _hear(self, received: Received[Message]) -> None:
        self.heard.append(received.message)
        self.recording.add(
            Decoded(received.message, None, received.source, received.epoch, received.seq)
        )

    def beat(self) -> None:
        """What keeps everybody alive and fresh."""
        bus = self.outside.bus
        for host, owns in zip(self.hosts, ((), (CARD.model,)), strict=True):
            beat = HEARTBEAT.model_copy(
                update={
                    "component": host.component,
                    "instance": host.instance,
                    "role": None,
                    "owns": owns,
                }
            )
            bus.publish(subjects.heartbeat_sent(host.component, host.instance), beat)
        for name, role in PAIR:
            update = {"instance": name, "role": role, "process_epoch": 1, "shard": CARD.model}
            beat = HEARTBEAT.model_copy(update=update)
            bus.publish(subjects.heartbeat_sent("worker", name), beat)
            load = LOAD.model_copy(
                update={"engine": name, "engine_epoch": 1, "role": role, "running": 0}
            )
            bus.publish(subjects.engine_load_reported(name), load)

    def all(self, kind: type[Message]) -> list[Message]:
        return [m for m in self.heard if isinstance(m, kind)]

    async def until(self, condition: Callable[[], bool], within_s: float = 5.0) -> None:
        for _ in range(int(within_s / 0.01)):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"not within {within_s} s; heard {[m.schema_id for m in self.heard]}")


async def run(scenario: Callable[[Yard], object]) -> None:
    hub = MemoryHub()
    async with (
        connected_host("scheduler", hub=hub) as scheduler,
        connected_host("router", hub=hub) as router,
        connected_host("worker", "outside", hub=hub) as outside,
    ):
        yard = Yard(scheduler, router, outside)
        await yard.listen()
        await Scheduler(scheduler, SchedulerSettings(snapshot_s=0.2)).start()
        await Router(router, RouterSettings(warmup_s=0.1, snapshot_s=0.2)).start()
        beats = asyncio.create_task(_beat(yard))
        await scenario(yard)  # type: ignore[misc]
        beats.cancel()
        assert scheduler.faults == []
        assert router.faults == []
        await asyncio.sleep(0.05)  # the last batch of steps leaves within 10 ms
        for life in yard.recording.lives():
            report = yard.recording.check(life)
            assert report.exact, report
            assert (report.unexplained, report.unseen) == ([], [])


async def _beat(yard: Yard) -> None:
    while True:
        yard.beat()
        await asyncio.sleep(0.1)


def submit(yard: Yard, request_id: str, body: bytes | None = b"body") -> None:
    card = CARD.model_copy(update={"request_id": request_id})
    yard.outside.bus.publish(
        subjects.schedule_request("scheduler-0"), ScheduleRequest(card=card, body=body)
    )


async def test_a_request_reaches_both_workers_with_its_body_and_the_journal_explains_it() -> None:
    async def scenario(yard: Yard) -> None:
        submit(yard, "a", b"the body")
        await yard.until(lambda: len(yard.all(RunAttempt)) == 2)
        runs = [m for m in yard.heard if isinstance(m, RunAttempt)]
        assert [(r.phase, r.body) for r in runs] == [
            ("decode", b"the body"),
            ("prefill", b"the body"),
        ]
        assert len(yard.all(RequestQueued)) == 1
        await yard.until(lambda: len(yard.all(RequestDispatched)) == 1)
        for host in yard.hosts:
            assert host.steps("a") == (
                ["scheduled"] if host.component == "scheduler" else ["routed", "dispatched"]
            )
        await asyncio.sleep(0.5)  # a few snapshots later

    await run(scenario)


async def test_no_body_ever_enters_the_journal() -> None:
    async def scenario(yard: Yard) -> None:
        submit(yard, "a", b"CANARY")
        await yard.until(lambda: len(yard.all(RequestDispatched)) == 1)
        submit(yard, "b", b"CANARY")
        await yard.until(lambda: len(yard.all(RequestDispatched)) == 2)
        entries = [e for found in yard.recording.entries.values() for e in found]
        states = [s.state for found in yard.recording.snapshots.values() for s in found]
        assert entries
        assert not any(b"CANARY" in e.inputs or b"CANARY" in e.outcomes for e in entries)
        assert not any(b"CANARY" in state for state in states)

    await run(scenario)


async def test_a_refused_attempt_comes_again_with_a_higher_number() -> None:
    async def scenario(yard: Yard) -> None:
        submit(yard, "a")
        await yard.until(lambda: len(yard.all(RequestDispatched)) == 1)
        nack = example(
            AttemptReported, request_id="a", worker_epoch=1, state="refused", nack="full"
        )
        yard.outside.bus.publish(subjects.attempt_reported(CARD.model, "decode-0"), nack)
        await yard.until(lambda: len(yard.all(RequestDispatched)) == 2)
        dispatched = [m.attempt for m in yard.heard if isinstance(m, RequestDispatched)]
        assert dispatched == [1, 2]

    await run(scenario)


async def test_a_cancelled_request_leaves_nothing_behind() -> None:
    async def scenario(yard: Yard) -> None:
        submit(yard, "a")
        await yard.until(lambda: len(yard.all(RequestDispatched)) == 1)
        yard.outside.bus.publish(
            subjects.cancel_request("scheduler-0"), CancelRequest(request_id="a")
        )
        await yard.until(
            lambda: len([m for m in yard.heard if m.schema_id == "attempt.cancel.v1"]) == 2
        )

    await run(scenario)


async def test_state_that_a_stream_keeps_is_journalled_as_a_reference() -> None:
    async def scenario(yard: Yard) -> None:
        submit(yard, "a")
        await yard.until(lambda: len(yard.all(RequestDispatched)) == 1)
        entries = [e for found in yard.recording.entries.values() for e in found]
        assert not any(LOAD.scheduling_mode.encode() in e.inputs for e in entries)
        assert any(EngineLoadReported.schema_id.encode() in e.inputs for e in entries)

    await run(scenario)
