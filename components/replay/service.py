"""The past as a component: one process that reads the streams and answers questions about them.

It reads with a key of its own, because who hears live subjects may not read streams. Questions are
answered one after the other, each by a task, so that a long one keeps nobody from the bus.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any, Final, TypeVar

from bus import subjects
from bus.bus import Received, Subscription
from bus.errors import MessageTooLarge, StreamUnavailable
from bus.history import Gap, History
from components.host.host import Host
from components.replay.answers import Answers
from components.replay.auditor import Auditor
from components.replay.exports import Exports
from components.replay.index import RequestIndex
from components.replay.indexer import Indexer
from components.replay.refused import Refused
from components.replay.settings import ReplaySettings
from schemas.history import ShowHistory, ShowHistoryReply
from schemas.message import Message
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

Q = TypeVar("Q", bound=Message)
#: What an answer carries when there is none.
_RETRY: Final = "the history cannot be read now; requests go on, try again"


class ReplayService:
    """See the top of the file."""

    def __init__(self, host: Host, settings: ReplaySettings) -> None:
        self._host = host
        self._settings = settings
        key_file = Path(settings.history_key_file) if settings.history_key_file else None
        self._history = self._reader(key_file)
        # Following asks all the time; answers have a connection of their own.
        self._followed = self._reader(key_file)
        self._index = RequestIndex(settings.requests_max)
        self._indexer = Indexer(self._followed, self._index)
        make = functools.partial(self._reader, key_file)
        self._auditor = Auditor(host, make, lambda: self._waiting > 0)
        self._answers = Answers(self._history, self._index, self._indexer)
        self._exports = Exports(self._history, host.clock)
        self._subscriptions: list[Subscription] = []
        self._turn = asyncio.Lock()
        self._waiting = 0

    def _reader(
        self, key_file: Path | None, on_gap: Callable[[Gap], None] | None = None
    ) -> History:
        host = self._host.settings
        return History(host.nats_url, key_file, prefix=host.subject_prefix, on_gap=on_gap)

    async def start(self) -> None:
        await self._history.connect()
        await self._followed.connect()
        for reader in self._auditor.readers:
            await reader.connect()
        self._auditor.start()
        _ = self._host.tasks.spawn("replay.index", self._indexer.run())
        answers = self._answers
        await self._answer(subjects.show_instant(), ShowInstant, answers.instant, ShowInstantReply)
        await self._answer(
            subjects.explain_request(), ExplainRequest, answers.explain, ExplainRequestReply
        )
        # The auditor has readers of its own, so that its answer waits for no other.
        show, turn = self._auditor.show, nullcontext()
        await self._answer(subjects.show_history(), ShowHistory, show, ShowHistoryReply, turn)
        await self._answer(subjects.read_past(), ReadPast, answers.read, ReadPastReply)
        await self._answer(subjects.export_past(), ExportPast, self._exports.piece, ExportPastReply)
        await self._answer(
            subjects.replay_journal(), ReplayJournal, answers.replay, ReplayJournalReply
        )
        self._host.tasks.every("replay.count", 1.0, self._count)

    async def drain(self, deadline_s: float) -> None:
        """Let the question that is being answered have its answer."""
        async with asyncio.timeout(deadline_s), self._turn:
            pass

    async def stop(self) -> None:
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.unsubscribe()
        self._exports.close()
        await self._history.close()
        await self._followed.close()
        for reader in self._auditor.readers:
            await reader.close()

    def heartbeat(self) -> dict[str, object]:
        return {"state": "ready" if self._auditor.state == "ok" else "degraded"}

    async def _answer(
        self,
        subject: str,
        question: type[Q],
        answer: Callable[[Q], Awaitable[Message]],
        reply: type[Message],
        turn: AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        """``turn``: what to hold while ``answer`` runs; by default the one that all share."""

        def asked(received: Received[Q]) -> None:
            if self._waiting >= self._settings.questions_max:
                self._host.counters.add("questions_refused_total")
                self._refuse(received, reply, "too_much", "too many questions wait: ask again")
                return
            self._host.counters.add("questions_total")
            self._waiting += 1
            name = f"replay.{question.schema_id}"
            _ = self._host.tasks.spawn(
                name, self._give(received, answer, reply, turn or self._turn)
            )

        self._subscriptions.append(
            await self._host.bus.subscribe(subject, question, asked, queue="replay")
        )

    async def _give(
        self,
        received: Received[Q],
        answer: Callable[[Q], Awaitable[Message]],
        reply: type[Message],
        turn: AbstractAsyncContextManager[object],
    ) -> None:
        try:
            async with asyncio.timeout(self._settings.answer_timeout_s), turn:
                self._host.bus.respond(received, await answer(received.message))
        except Refused as why:
            self._refuse(received, reply, why.code, str(why))
        except StreamUnavailable as error:
            self._refuse(received, reply, "history_unavailable", f"{error}: {_RETRY}")
        except (TimeoutError, MessageTooLarge):
            self._refuse(received, reply, "too_much", "choose instants closer together")
        finally:
            self._waiting -= 1

    def _refuse(self, received: Received[Q], reply: type[Message], code: str, detail: str) -> None:
        about: dict[str, Any] = {
            name: getattr(received.message, name)
            for name in ("request_id", "at_ms")
            if name in reply.model_fields
        }
        if "found" in reply.model_fields:
            about["found"] = False
        refused = reply.model_validate({**about, "refusal": code, "detail": detail})
        self._host.bus.respond(received, refused)

    def _count(self) -> None:
        self._exports.on_tick()
        self._host.counters["audit_forgotten_total"] = self._auditor.forgotten_total
        self._host.counters["indexed_requests"] = len(self._index)
        self._host.counters["indexed_seq"] = self._indexer.last_seq
        self._host.counters["index_forgotten_total"] = self._index.forgotten_total
