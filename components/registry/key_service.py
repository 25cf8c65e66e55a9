"""Answers for API keys: make, revoke, list; and whom one lets in, which gateways ask."""

import json
from collections.abc import Callable
from typing import Final, TypeVar

from pydantic import ValidationError

from bus import subjects
from bus.bus import Received
from bus.errors import RecordChanged, RecordRefused, StreamUnavailable
from bus.records import Record, Records
from bus.subjects import ANY
from components.host.host import Host
from components.registry.keys import KeyRecord, KeyRefused, KeyTable
from components.registry.looks import FirstLooks, Looks, is_as_new
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

KEYS: Final = "keys"
#: How often keys are looked through for those that stood long enough.
AGED_S: Final = 60.0
_NOT_READ: Final = "the records could not be read yet: try again"


class KeyService:
    """The part of the registry that keeps API keys."""

    def __init__(self, host: Host, settings: RegistrySettings, records: Records) -> None:
        self._host = host
        self._records = records
        self._table = KeyTable(settings.keys_max, settings.key_record_days)
        self._looks = Looks(host, "API keys", self._read_all, self._read)
        self._first_looks = FirstLooks(host, "API keys", self._find)
        self._questions = Questions(host)
        self.loaded = False

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

    # Records.

    async def _read_all(self) -> None:
        found = await self._records.all(KEYS)
        for record in found:
            self._take(record)
        for key_id in self._table.names() - {record.name for record in found}:
            await self._read(key_id, 0)
        self.loaded = True

    async def _read(self, key_id: str, revision: int | None) -> bool:
        """One record; whether it is as new as ``revision``, None: as its removal."""
        record = await self._records.get(KEYS, key_id)
        known = self._table.revision(key_id)
        if record is None or not self._take(record):
            self._table.gone(key_id)
        return is_as_new(record, known, revision)

    async def _find(self, key_id: str) -> None:
        """One that is not known here; if there is none yet, nothing changes."""
        if record := await self._records.get(KEYS, key_id):
            _ = self._take(record)

    def _take(self, record: Record) -> bool:
        try:
            values = json.loads(record.value)
            digest = bytes.fromhex(values.pop("digest"))
            key = ApiKey.model_validate({**values, "revision": record.revision})
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
            self._host.counters.add("records_unreadable_total")
            return False
        self._table.stored(KeyRecord(key, digest))
        return True

    async def _put(self, wanted: KeyRecord) -> ApiKey:
        key = wanted.key
        values = {**key.model_dump(exclude={"revision"}), "digest": wanted.digest.hex()}
        value = json.dumps(values).encode()
        revision = await self._records.put(KEYS, key.key_id, value, revision=key.revision)
        key = key.model_copy(update={"revision": revision})
        self._table.stored(KeyRecord(key, wanted.digest))
        return key

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
            key = await self._written(asked.message.key_id, decide)
        except KeyRefused as why:
            self._host.counters.add(f"keys_refused_{why.reason}_total")
            self._host.bus.respond(asked, reply(refusal=why.reason, detail=str(why)))
            return
        self._tell(key, what)
        self._host.bus.respond(asked, reply(key=key))

    async def _written(self, key_id: str, decide: Callable[[], KeyRecord]) -> ApiKey:
        """Decided again, once, where another registry may have been faster."""
        if not self.loaded:
            raise KeyRefused("store_away", _NOT_READ)
        try:
            for last in (False, True):
                try:
                    wanted = decide()
                    if self._table.is_stored(wanted):
                        return wanted.key
                    return await self._put(wanted)
                except KeyRefused as why:
                    if last or why.reason != "not_found":
                        raise
                except RecordChanged:
                    if last:
                        detail = "it changes all the time: try again"
                        raise KeyRefused("conflict", detail) from None
                await self._read(key_id, 0)
        except RecordRefused as error:
            raise KeyRefused("full", str(error)) from error
        except StreamUnavailable as error:
            raise KeyRefused("store_away", f"{error}: try again") from error
        raise AssertionError("two attempts end in one of the ways above")

    async def _remove_old(self, place_for: int = 0) -> None:
        """What cannot be removed now stays until the next time."""
        if not self.loaded or not self._host.bus.connected:
            return
        for key in self._table.to_remove(self._host.clock.wall_ms(), place_for=place_for):
            try:
                await self._records.delete(KEYS, key.key_id, revision=key.revision)
            except RecordChanged:
                self._looks.at(key.key_id, None)
            except StreamUnavailable:
                return
            else:
                self._table.gone(key.key_id)
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
        if (received.source, received.epoch) == (self._host.instance, self._host.epoch):
            return
        event = received.message
        if event.what in {"revoked", "removed"}:
            # Before the look: a gateway that heard the same may ask next, and remembers the answer.
            self._table.ended(event.key_id, event.revision)
        self._looks.at(event.key_id, None if event.what == "removed" else event.revision)

    # Questions.

    def _list(self, asked: Received[ListKeys]) -> None:
        if self.loaded:
            keys, more = self._table.page(asked.message)
            reply = ListKeysReply(keys=keys, more=more)
        else:
            reply = ListKeysReply(refusal="store_away", detail=_NOT_READ)
        self._host.bus.respond(asked, reply)

    def _check(self, asked: Received[CheckKey]) -> None:
        if not self.loaded:
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
