"""A connection of a client, and what it may ask."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import orjson

from bus import subjects
from bus.clients import DEFAULT_TENANT, client_inbox
from bus.errors import AskTimedOut, BusError, NoResponders, TooManyPages
from bus.nats_bus import NatsBus
from bus.paging import Page, read_pages
from bus.subjects import PREFIX
from components.client.errors import CannotConnect, ClientError, NobodyAnswers, Refused, TimedOut
from components.client.stream import Stream, refused
from schemas.client import CancelGeneration, ExplainGeneration, ExplainGenerationReply, Refusal
from schemas.engine import EngineStateSeen, ShowStates, ShowStatesReply
from schemas.engines import ENGINES_PAGE_MAX, KnownEngine, ListEngines, ListEnginesReply
from schemas.fleet import ModelCard, ShowFleet, ShowFleetReply, ShowModel, ShowModelReply
from schemas.message import Message
from schemas.nodes import ListNodes, ListNodesReply, Node

R = TypeVar("R", bound=Message)
P = TypeVar("P", bound=Page)

CONNECT_S: Final = 5.0
#: For what is answered from what is known.
ANSWER_S: Final = 5.0
#: For what must be read first.
PAST_S: Final = 35.0
#: A gateway says something at least every 2 s.
SILENCE_S: Final = 10.0
#: A little longer than a gateway takes to give an answer in one up.
WHOLE_S: Final = 125.0


class Client:
    """One program of one tenant.

    The connection is restored by itself; what is asked meanwhile waits. A streamed answer survives
    an absence of the server unless a message of it was lost: then it raises ``AnswerLost``.
    ``key_file`` is the tenant's (``client-TENANT.nk``); None for a server that asks for no key.
    """

    def __init__(
        self,
        url: str,
        *,
        tenant: str = DEFAULT_TENANT,
        key_file: Path | None = None,
        prefix: str = PREFIX,
        silence_s: float = SILENCE_S,
    ) -> None:
        """Raises ``ValueError`` for what is no address, or no prefix."""
        self._tenant = tenant
        self._silence_s = silence_s
        self._bus = NatsBus(
            url,
            source=f"client-{tenant}",
            epoch=time.time_ns() // 1_000_000,
            key_file=key_file,
            prefix=prefix,
            inbox_prefix=client_inbox(tenant),
            connect_timeout_s=CONNECT_S,
        )

    async def __aenter__(self) -> Self:
        try:
            await self._bus.connect()
        except (BusError, OSError, ValueError) as error:
            raise CannotConnect(str(error)) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._bus.close()

    # Tokens. Fields are OpenAI's, as over HTTP.

    def chat(self, **body: Any) -> Stream:
        """A chat as it is written."""
        return self._stream(subjects.complete_chat(self._tenant), body)

    def text(self, **body: Any) -> Stream:
        """A completion as it is written."""
        return self._stream(subjects.complete_text(self._tenant), body)

    async def complete(self, *, timeout_s: float = WHOLE_S, **body: Any) -> dict[str, Any]:
        """OpenAI's answer in one: to a chat when there are ``messages``, else to a ``prompt``.

        Raises ``ClientError``; whoever stops waiting cancels it.
        """
        chat = "messages" in body
        subject = (subjects.complete_chat if chat else subjects.complete_text)(self._tenant)
        arrived: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

        def take(data: bytes | None) -> None:
            if not arrived.done():
                arrived.set_result(data)

        asked = self._bus.call(subject, orjson.dumps(body | {"stream": False}), take)
        try:
            async with asyncio.timeout(timeout_s):
                data = await arrived
        except TimeoutError:
            raise TimedOut(f"no answer within {timeout_s:g} s") from None
        finally:
            asked.close()
            if not arrived.done() or arrived.cancelled():
                cancel = CancelGeneration(reply=asked.address)
                self._bus.publish(subjects.cancel_generation(self._tenant), cancel)
        if data is None:
            raise NobodyAnswers(f"no gateway serves {subject}")
        answer: dict[str, Any] = orjson.loads(data)
        if "error" in answer:
            raise refused(answer)
        return answer

    def _stream(self, subject: str, body: dict[str, Any]) -> Stream:
        data = orjson.dumps(body | {"stream": True})
        return Stream(self._bus, self._tenant, subject, data, self._silence_s)

    # What is known.

    async def fleet(self) -> ShowFleetReply:
        """Every process and engine that the registry has heard of."""
        return await self._ask(subjects.show_fleet(), ShowFleet(), ShowFleetReply)

    async def models(self) -> list[str]:
        """The models that living workers serve."""
        processes = (await self.fleet()).processes
        named = {p.heartbeat.model for p in processes if not p.lost}
        return sorted(name for name in named if name is not None)

    async def model(self, name: str) -> ModelCard:
        """What a worker says of its model."""
        question = ShowModel(model=name)
        return (await self._ask(subjects.show_model(name), question, ShowModelReply)).card

    async def states(self) -> list[EngineStateSeen]:
        """What every living bridge knows of engines outside."""
        processes = (await self.fleet()).processes
        bridges = [p.heartbeat for p in processes if not p.lost]
        found: list[EngineStateSeen] = []
        for bridge in (b.instance for b in bridges if b.component == "bridge"):
            found += await self._states_of(bridge)
        return found

    async def _states_of(self, bridge: str) -> list[EngineStateSeen]:
        subject = subjects.show_states(bridge)

        async def ask(after: str) -> ShowStatesReply:
            return await self._ask(subject, ShowStates(after=after), ShowStatesReply)

        pages = await _pages(ask, lambda page: [seen.state.engine_id for seen in page.engines])
        return [seen for page in pages for seen in page.engines]

    async def nodes(self) -> list[Node]:
        """Every node that was declared; raises ``Refused`` when the registry cannot tell."""

        async def ask(after: str) -> ListNodesReply:
            reply = await self._ask(subjects.list_nodes(), ListNodes(after=after), ListNodesReply)
            if reply.refusal is not None:
                raise Refused(Refusal(code=reply.refusal, message=reply.detail))
            return reply

        pages = await _pages(ask, lambda page: [node.node_id for node in page.nodes])
        return [node for page in pages for node in page.nodes]

    async def engines(self, *, missing: bool = False) -> list[KnownEngine]:
        """Every engine that there is or should be; ``missing``: those that are not heard.

        Raises ``Refused`` while the registry cannot tell of those.
        """

        async def ask(after: str) -> ListEnginesReply:
            question = ListEngines(after=after, limit=ENGINES_PAGE_MAX, missing=missing)
            reply = await self._ask(subjects.list_engines(), question, ListEnginesReply)
            if not reply.complete:
                detail = "the records of engines cannot be read yet"
                raise Refused(Refusal(code="store_away", message=detail))
            return reply

        pages = await _pages(ask, lambda page: [known.record.engine for known in page.engines])
        return [known for page in pages for known in page.engines]

    async def explain(self, request_id: str) -> ExplainGenerationReply:
        """Why a request of this tenant went where it went, and where its time went.

        ``Stream.requests`` names them; an answer in one is ``req-`` and what follows the dash of
        its ``id``. ``found`` is False for what the past does not know (yet, any more, or for us).
        """
        subject = subjects.explain_generation(self._tenant)
        question = ExplainGeneration(request_id=request_id)
        reply = await self._ask(subject, question, ExplainGenerationReply, PAST_S)
        if reply.refusal is not None:
            raise Refused(Refusal(code=reply.refusal, message=reply.detail))
        return reply

    async def _ask(
        self, subject: str, question: Message, reply: type[R], timeout_s: float = ANSWER_S
    ) -> R:
        try:
            return await self._bus.ask(subject, question, reply, timeout_s=timeout_s)
        except NoResponders as error:
            raise NobodyAnswers(f"nobody answers on {subject}") from error
        except AskTimedOut as error:
            raise TimedOut(str(error)) from error
        except BusError as error:
            raise ClientError(str(error)) from error


async def _pages(ask: Callable[[str], Awaitable[P]], keys: Callable[[P], Sequence[str]]) -> list[P]:
    """Raises ``ClientError``."""
    try:
        return await read_pages(ask, keys)
    except TooManyPages as error:
        raise ClientError(str(error)) from error
