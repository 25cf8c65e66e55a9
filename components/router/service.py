"""The router's shell: subscribes, carries bodies past the core, answers windows."""

from typing import assert_never

from bus import subjects
from bus.bus import Received
from bus.subjects import ANY
from components.domain.outcomes import Answer, Ask, Send
from components.host.core_runner import CoreRunner
from components.host.host import Host
from components.router.core import RouterCore
from components.router.settings import RouterSettings
from schemas.attempt import AttemptReported, RunAttempt
from schemas.engine import EngineLoadReported
from schemas.fleet import HeartbeatSent
from schemas.routing import RouteWindow, RouteWindowReply

#: Questions that may be open at once: one per scheduler and shard, so this is generous.
QUESTIONS_MAX = 1024


class Router:
    """One router process."""

    def __init__(self, host: Host, settings: RouterSettings) -> None:
        self._host = host
        self._core = RouterCore(host.instance, settings)
        self._questions: dict[tuple[str, ...], Received[RouteWindow]] = {}
        #: Bodies of the windows that are being answered.
        self._bodies: dict[tuple[str, int], bytes] = {}
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
        await bus.subscribe(subjects.heartbeat_sent("worker", ANY), HeartbeatSent, feed)
        await bus.subscribe(subjects.engine_load_reported(ANY), EngineLoadReported, feed)
        await bus.subscribe(subjects.attempt_reported(ANY, ANY), AttemptReported, feed)
        await bus.subscribe(subjects.route_window(ANY, me), RouteWindow, self._on_window)
        self._runner.start()

    async def drain(self, deadline_s: float) -> None:
        """Nothing to finish: what was dispatched runs without us."""

    async def stop(self) -> None:
        """Nothing is held outside the core."""

    def heartbeat(self) -> dict[str, object]:
        return {"owns": self._core.shards}

    def _on_window(self, received: Received[RouteWindow]) -> None:
        window = received.message
        if len(self._questions) >= QUESTIONS_MAX:
            self._host.counters.add("windows_dropped_total", 1)
            return  # the scheduler's own clock treats it as unanswered
        self._questions[(window.scheduler, str(window.window))] = received
        for card, body in zip(window.cards, window.bodies, strict=False):
            if body is not None:
                self._bodies[(card.request_id, card.attempt)] = body
        self._runner.feed_message(window.model_copy(update={"bodies": ()}))

    def _perform(self, outcome: Send | Ask | Answer) -> None:
        match outcome:
            case Send():
                message = outcome.message
                if isinstance(message, RunAttempt):
                    body = self._bodies.get((message.card.request_id, message.card.attempt))
                    message = message.model_copy(update={"body": body})
                subject = subjects.subject_of(message, outcome.to)
                self._host.bus.publish(subject, message, trace=outcome.trace)
            case Answer():
                assert isinstance(outcome.message, RouteWindowReply)
                self._answer(outcome.to, outcome.message)
            case Ask():
                raise AssertionError("the router asks nothing")
            case _:
                assert_never(outcome)

    def _answer(self, to: tuple[str, ...], reply: RouteWindowReply) -> None:
        question = self._questions.pop(to, None)
        if question is None:
            return
        for card in question.message.cards:
            self._bodies.pop((card.request_id, card.attempt), None)
        self._host.bus.respond(question, reply)
