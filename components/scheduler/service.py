"""The scheduler's shell: subscribes, keeps bodies away from the core, asks the router."""

from typing import assert_never

from bus import subjects
from bus.bus import Received
from bus.errors import AskTimedOut, BusError, NoResponders
from bus.subjects import ANY
from components.domain.outcomes import Answer, Ask, Send
from components.host.core_runner import CoreRunner
from components.host.host import Host
from components.scheduler.bodies import Bodies
from components.scheduler.core import SchedulerCore
from components.scheduler.settings import SchedulerSettings
from schemas.attempt import AttemptReported
from schemas.fleet import HeartbeatSent
from schemas.request import CancelRequest, RequestRefused, ScheduleRequest
from schemas.routing import CardWaits, RoomChanged, RouteWindow, RouteWindowReply


class Scheduler:
    """One scheduler process."""

    def __init__(self, host: Host, settings: SchedulerSettings) -> None:
        self._host = host
        self._settings = settings
        self._core = SchedulerCore(host.instance, settings)
        self._bodies = Bodies(settings.bodies_bytes_max)
        self._runner = CoreRunner(
            host,
            self._core,
            self._perform,
            settings,
            tick_s=settings.tick_ms / 1000,
            snapshot_s=settings.snapshot_s,
        )

    async def start(self) -> None:
        bus, me, feed = self._host.bus, self._host.instance, self._runner.feed
        await bus.subscribe(subjects.heartbeat_sent(ANY, ANY), HeartbeatSent, feed)
        await bus.subscribe(subjects.attempt_reported(ANY, ANY), AttemptReported, feed)
        await bus.subscribe(subjects.room_changed(ANY), RoomChanged, feed)
        await bus.subscribe(subjects.cancel_request(me), CancelRequest, self._on_cancel)
        await bus.subscribe(subjects.schedule_request(me), ScheduleRequest, self._on_schedule)
        self._runner.start()

    async def drain(self, deadline_s: float) -> None:
        """Nothing to finish: gateways submit what is queued here to the next scheduler."""

    async def stop(self) -> None:
        """Nothing is held outside the core."""

    def heartbeat(self) -> dict[str, object]:
        return {"running": len(self._core.requests)}

    def _on_schedule(self, received: Received[ScheduleRequest]) -> None:
        message = received.message
        if message.body is not None:
            self._bodies.put(message.card.request_id, message.card.attempt, message.body)
        self._runner.feed_message(ScheduleRequest(card=message.card))

    def _on_cancel(self, received: Received[CancelRequest]) -> None:
        self._bodies.drop(received.message.request_id)
        self._runner.feed(received)

    def _perform(self, outcome: Send | Ask | Answer) -> None:
        match outcome:
            case Send():
                if isinstance(outcome.message, RequestRefused):
                    self._bodies.drop(outcome.message.request_id)
                subject = subjects.subject_of(outcome.message, outcome.to)
                self._host.bus.publish(subject, outcome.message, trace=outcome.trace)
            case Ask():
                assert isinstance(outcome.message, RouteWindow)
                _ = self._host.tasks.spawn("route_window", self._route(outcome.message, outcome.to))
            case Answer():
                raise AssertionError("the scheduler answers no questions")
            case _:
                assert_never(outcome)

    async def _route(self, window: RouteWindow, to: tuple[str, ...]) -> None:
        bodies = tuple(self._bodies.get(c.request_id, c.attempt) for c in window.cards)
        question = window.model_copy(update={"bodies": bodies})
        try:
            reply = await self._host.bus.ask(
                subjects.route_window(*to),
                question,
                RouteWindowReply,
                timeout_s=self._settings.window_timeout_s * 2,
            )
        except NoResponders:
            reply = _nobody(window)
        except (AskTimedOut, BusError):
            # The core's own clock decides what an unanswered window means.
            self._host.counters.add("asks_failed_total", 1)
            return
        for plan in reply.plans:
            self._bodies.drop(plan.request_id)
        self._runner.feed_message(reply)


def _nobody(window: RouteWindow) -> RouteWindowReply:
    """The answer of a router that is not there: it certainly placed nothing."""
    return RouteWindowReply(
        shard=window.shard,
        window=window.window,
        router="",
        router_epoch=0,
        plans=(),
        waits=tuple(CardWaits(request_id=c.request_id, reason="not_owner") for c in window.cards),
    )
