"""Answers for API keys: make, revoke, list; and whom one lets in, which gateways ask."""

from collections.abc import Callable
from typing import Final, TypeVar

from bus import subjects
from bus.bus import Received
from bus.errors import RecordChanged, StreamUnavailable
from bus.records import Records
from bus.subjects import ANY
from components.host.host import Host
from components.registry.key_records import KeyRecords
from components.registry.keys import KeyRecord, KeyRefused, KeyTable
from components.registry.looks import FirstLooks, Looks
from components.registry.questions import Questions
from components.registry.settings import RegistrySettings
from schemas.keys import (
    ApiKey,
    CheckKey,
    CheckKeyReply,
    KeyChanged,
    KeyEvent,
    ListKeys,
    ListKeysReply,
    MakeKey,
    MakeKeyReply,
    RevokeKey,
    RevokeKeyReply,
)

R = TypeVar("R", MakeKeyReply, RevokeKeyReply)
Change = TypeVar("Change", MakeKey, RevokeKey)

#: How often keys are looked through for those that stood long enough.
AGED_S: Final = 60.0
_NOT_READ: Final = "the records could not be read yet: try again"


class KeyService:
    """The part of the registry that keeps API keys."""

    def __init__(self, host: Host, settings: RegistrySettings, records: Records) -> None:
        self._host = host
        self._table = KeyTable(settings.keys_max, settings.key_record_days)
        self._records = KeyRecords(host, records, self._table)
        self._looks = Looks(host, "API keys", self._records.read_all, self._records.read)
        self._first_looks = FirstLooks(host, "API keys", self._records.find)
        self._questions = Questions(host)

    async def start(self) -> None:
        questions = self._questions
        await questions.answer(MakeKey, self._on_make)
        await questions.answer(RevokeKey, self._on_revoke)
        await questions.answer(ListKeys, self._list)
        await questions.answer(CheckKey, self._check)
        await questions.hear(subjects.key_changed(ANY), KeyChanged, self._on_changed)
        self._host.tasks.every("keys.age", AGED_S, self._remove_old)
        self._looks.start()

    async def stop(self) -> None:
        await self._questions.stop()

    def resume(self) -> None:
        """The bus was away: others may have written."""
        self._looks.at_all()

    # Changes.

    def _on_make(self, asked: Received[MakeKey]) -> None:
        _ = self._host.tasks.spawn("keys.make", self._make(asked))

    async def _make(self, asked: Received[MakeKey]) -> None:
        await self._remove_old(place_for=1)
        message = asked.message
        await self._change(
            asked,
            "made",
            lambda: self._table.make(message, self._host.clock.wall_ms()),
            MakeKeyReply,
        )

    def _on_revoke(self, asked: Received[RevokeKey]) -> None:
        key_id = asked.message.key_id
        change = self._change(
            asked,
            "revoked",
            lambda: self._table.revoke(key_id, self._host.clock.wall_ms()),
            RevokeKeyReply,
        )
        _ = self._host.tasks.spawn("keys.revoke", change)

    async def _change(
        self,
        asked: Received[Change],
        what: KeyEvent,
        decide: Callable[[], KeyRecord],
        reply: type[R],
    ) -> None:
        try:
            key = await self._records.write(asked.message.key_id, decide)
        except KeyRefused as why:
            self._host.counters.add(f"keys_refused_{why.reason}_total")
            self._host.bus.respond(asked, reply(refusal=why.reason, detail=str(why)))
            return
        self._tell(key, what)
        self._host.bus.respond(asked, reply(key=key))

    async def _remove_old(self, place_for: int = 0) -> None:
        """What cannot be removed now stays until the next time."""
        if not self._records.loaded or not self._host.bus.connected:
            return
        for key in self._table.to_remove(self._host.clock.wall_ms(), place_for=place_for):
            try:
                await self._records.remove(key)
            except RecordChanged:
                self._looks.at(key.key_id, None)
            except StreamUnavailable:
                return
            else:
                self._tell(key, "removed")

    def _tell(self, key: ApiKey, what: KeyEvent) -> None:
        event = KeyChanged(
            key_id=key.key_id,
            what=what,
            tenant=key.tenant,
            revision=key.revision,
            at_ms=self._host.clock.wall_ms(),
        )
        self._host.bus.publish(subjects.key_changed(key.key_id), event)
        self._host.log.info("key %s of %s %s", key.key_id, key.tenant, what)
        self._host.counters["keys"] = len(self._table)

    def _on_changed(self, received: Received[KeyChanged]) -> None:
        """What another registry wrote."""
        event = received.message
        if event.what in {"revoked", "removed"}:
            # Before the look: a gateway that heard the same may ask next, and remembers the answer.
            self._table.ended(event.key_id, event.revision)
        self._looks.at(event.key_id, None if event.what == "removed" else event.revision)

    # Questions.

    def _list(self, asked: Received[ListKeys]) -> None:
        if self._records.loaded:
            keys, more = self._table.page(asked.message)
            reply = ListKeysReply(keys=keys, more=more)
        else:
            reply = ListKeysReply(refusal="store_away", detail=_NOT_READ)
        self._host.bus.respond(asked, reply)

    def _check(self, asked: Received[CheckKey]) -> None:
        if not self._records.loaded:
            self._host.bus.respond(asked, CheckKeyReply(refusal="store_away"))
        elif self._table.revision(asked.message.key_id):
            self._answer_check(asked)
        else:
            self._first_looks.then(asked.message.key_id, lambda: self._answer_check(asked))

    def _answer_check(self, asked: Received[CheckKey]) -> None:
        message = asked.message
        key = self._table.check(message.key_id, message.digest, self._host.clock.wall_ms())
        self._host.counters.add("keys_right_total" if key else "keys_wrong_total")
        if key is None:
            reply = CheckKeyReply(refusal="not_found")
        else:
            reply = CheckKeyReply(tenant=key.tenant, expires_ms=key.expires_ms)
        self._host.bus.respond(asked, reply)
