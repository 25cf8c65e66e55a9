"""Whose request is this? API keys, asked of the registry and remembered.

Per request it is one look into a table. A key that was right is asked about again after a minute
(sooner where the grace is shorter), and stays right for ``api_key_grace_s`` while no registry
answers; one that was wrong is wrong for some seconds. So a flood of wrong keys costs few questions,
of which few are under way at a time, and drives no remembered key out; one that is new meanwhile is
told to come again. Whatever the registry changes about a key is forgotten here at once.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from bus import subjects
from bus.bus import Received
from bus.clients import DEFAULT_TENANT
from bus.errors import BusError
from bus.subjects import ANY
from components.domain import api_keys
from components.domain.api_keys import Shown
from components.gateway.errors import UNAVAILABLE, ApiError, overloaded
from components.gateway.settings import GatewaySettings
from components.host.host import Host
from schemas.keys import CheckKey, CheckKeyReply, KeyChanged

ANSWER_S: Final = 2.0
#: For how long an answer is not asked for again; after none, how soon it is.
RIGHT_S: Final = 60.0
WRONG_S: Final = 5.0
RETRY_S: Final = 5.0
#: After a question that nobody answered no unknown key is asked about for so long.
UNTOLD_S: Final = 1.0
#: Of each, right and wrong ones; the one asked about longest ago goes.
REMEMBERED_MAX: Final = 4096
ASKS_MAX: Final = 32
_BEARER: Final = "bearer "


@dataclass(slots=True)
class Right:
    """A key that lets in. ``asked_s``: when that was said; ``due_s``: when it is asked again."""

    tenant: str
    expires_ms: int
    asked_s: float
    due_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a question: the key lets in, it does not, or nobody could tell."""

    right: Right | None = None
    told: bool = True


class Tenants:
    """Raises ``ApiError``: 401 for keys that let nobody in, 503 when that cannot be known."""

    def __init__(self, host: Host, settings: GatewaySettings) -> None:
        self._host = host
        self._required = settings.api_keys == "required"
        self._grace_s = settings.api_key_grace_s
        self._again_s = min(RIGHT_S, max(self._grace_s, UNTOLD_S))
        self._right: OrderedDict[Shown, Right] = OrderedDict()
        #: Until when a key is wrong.
        self._wrong: OrderedDict[Shown, float] = OrderedDict()
        self._asking: dict[Shown, asyncio.Task[Verdict]] = {}
        self._untold_until_s = 0.0
        #: Counts what was changed, so that an answer that is older than a change is not kept.
        self._changes = 0

    async def start(self) -> None:
        await self._host.bus.subscribe(subjects.key_changed(ANY), KeyChanged, self._on_changed)
        self._host.bus.on_reconnect(self._on_reconnect)

    async def of(self, scope: Mapping[str, Any]) -> str:
        """The tenant of a request, by its head."""
        text = _bearer(scope)
        if not text.startswith(api_keys.PREFIX):
            # OpenAI's clients always send something; where no key is asked for it says nothing.
            if self._required:
                raise self._unauthorized(_MISSING if not text else _INVALID)
            return DEFAULT_TENANT
        shown = api_keys.read(text)
        if shown is None:
            raise self._unauthorized(_INVALID)
        now_s, wall_ms = self._host.clock.now_s(), self._host.clock.wall_ms()
        right = self._right.get(shown)
        if right is None or right.due_s <= now_s:
            right = await self._ask(shown, now_s)
        if right is None or 0 < right.expires_ms <= wall_ms:
            raise self._unauthorized(_INVALID)
        return right.tenant

    async def _ask(self, shown: Shown, now_s: float) -> Right | None:
        """What the registry says, asked once however many wait for it."""
        if self._wrong.get(shown, now_s) > now_s:
            return None
        asking = self._asking.get(shown)
        if asking is None:
            if now_s < self._untold_until_s and shown not in self._right:
                raise _cannot_tell()
            if len(self._asking) >= ASKS_MAX:
                # As when no registry answers: others' wrong keys shut no right one out.
                right = self._in_grace(shown, now_s)
                if right is None:
                    raise overloaded("many API keys are being checked")
                return right
            asking = self._host.tasks.spawn("gateway.check_key", self._asked(shown))
            self._asking[shown] = asking
            asking.add_done_callback(lambda _: self._asking.pop(shown, None))
        verdict = await asyncio.shield(asking)
        if not verdict.told:
            raise _cannot_tell()
        return verdict.right

    async def _asked(self, shown: Shown) -> Verdict:
        changes = self._changes
        reply = await self._reply(shown)
        now_s = self._host.clock.now_s()
        if reply is None:
            return self._unanswered(shown, now_s)
        self._forget(shown)
        known = Right(reply.tenant, reply.expires_ms, now_s, now_s + self._again_s)
        right = known if reply.refusal is None else None
        if changes == self._changes:
            if right is not None:
                self._right[shown] = right
                _bound(self._right)
            else:
                self._wrong[shown] = now_s + WRONG_S
                _bound(self._wrong)
        return Verdict(right)

    async def _reply(self, shown: Shown) -> CheckKeyReply | None:
        """None when no registry can say."""
        question = CheckKey(key_id=shown.key_id, digest=shown.digest)
        try:
            reply = await self._host.bus.ask(
                subjects.check_key(), question, CheckKeyReply, timeout_s=ANSWER_S
            )
        except BusError:
            reply = None
        self._host.counters.add("api_keys_asked_total")
        return None if reply is None or reply.refusal == "store_away" else reply

    def _unanswered(self, shown: Shown, now_s: float) -> Verdict:
        right = self._in_grace(shown, now_s)
        if right is None:
            self._host.counters.add("api_keys_unknown_total")
            self._untold_until_s = now_s + UNTOLD_S
            return Verdict(told=False)
        right.due_s = now_s + RETRY_S
        return Verdict(right)

    def _in_grace(self, shown: Shown, now_s: float) -> Right | None:
        """The key as it was right when that was said last, unless that is too long ago."""
        right = self._right.get(shown)
        return right if right and now_s - right.asked_s <= self._grace_s else None

    def _on_changed(self, received: Received[KeyChanged]) -> None:
        self._changes += 1
        key_id = received.message.key_id
        for shown in [s for s in (*self._right, *self._wrong) if s.key_id == key_id]:
            self._forget(shown)

    def _on_reconnect(self) -> None:
        """What was changed while the bus was away was not heard."""
        self._changes += 1
        self._wrong.clear()
        for right in self._right.values():
            right.due_s = self._host.clock.now_s()

    def _forget(self, shown: Shown) -> None:
        self._right.pop(shown, None)
        self._wrong.pop(shown, None)

    def _unauthorized(self, why: tuple[str, str]) -> ApiError:
        self._host.counters.add("http_unauthorized_total")
        code, message = why
        return ApiError(HTTPStatus.UNAUTHORIZED, code, message)


_MISSING: Final = (
    "missing_api_key",
    "This server wants an API key: send it as 'Authorization: Bearer sy-...'",
)
_INVALID: Final = ("invalid_api_key", "The API key is wrong, has ended or was revoked")


def _bearer(scope: Mapping[str, Any]) -> str:
    """What stands behind ``Authorization: Bearer``; nothing where that does not stand."""
    said = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    text: str = said.decode("latin-1")
    return text[len(_BEARER) :].strip() if text[: len(_BEARER)].lower() == _BEARER else ""


def _cannot_tell() -> ApiError:
    message = "It cannot be told now whose API key this is. Please try again"
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "api_keys_unavailable",
        message,
        UNAVAILABLE,
        retry_after_ms=1000,
    )


def _bound(table: OrderedDict[Shown, Any]) -> None:
    if len(table) > REMEMBERED_MAX:
        table.popitem(last=False)
