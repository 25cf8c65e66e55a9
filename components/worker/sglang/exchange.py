"""One try of one job: the same request to a prefill and a decode server, as one thing.

There is never half a pair for long. Both connections stand before a byte is sent, both requests
leave in the same turn of the loop, and when one half fails before decode has said anything, the
other one is dropped: its connection is closed and its server told to abort. A prefill that fails
later is noted and disturbs nobody: decode has its KV.

Prefill's answer is always read to its end, in the background when decode is faster. Where the
prompt's logprobs are asked for, decode's chunks wait for it.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from components.worker.sglang.faults import LegFault
from components.worker.sglang.http import CannotConnect, Connection, Origin
from components.worker.sglang.leg import Chunk, Leg
from components.worker.sglang.merging import merge_answers
from components.worker.sglang.pairs import Pair, Server, Verdict
from components.worker.sglang.responses import index_of

NOTHING: Final = LegFault("garbage", "nothing for a choice that was asked for")


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. See ``SglangSettings``."""

    first_byte_s: float
    first_token_s: float
    prefill_drain_s: float


@dataclass(frozen=True, slots=True)
class Lost:
    """The try is over without an answer, because of this server."""

    server: Server
    fault: LegFault

    @property
    def detail(self) -> str:
        return self.fault.told_by(self.server.side)


@dataclass(frozen=True, slots=True)
class How:
    """``needs_prompt``: decode's chunks wait for prefill's answer, which completes them.

    ``as_generated`` turns chunks of another route into those of ``/generate``.
    """

    limits: Limits
    stream: bool = True
    needs_prompt: bool = False
    as_generated: Callable[[Chunk], Chunk] | None = None


class PairCall:
    """See the top of the file.

    ``on_chunk`` gets decode's chunks in order, completed from prefill's where ``needs_prompt``;
    a ``BadAnswer`` from it ends the try. ``on_settled`` hears of each server once when it has
    nothing of this try any more; ``on_dropped`` when it must be told to abort.
    """

    def __init__(
        self,
        pair: Pair,
        origins: Mapping[str, Origin],
        how: How,
        *,
        on_chunk: Callable[[Chunk], None],
        on_settled: Callable[[Server, Verdict], None],
        on_dropped: Callable[[Server], None],
    ) -> None:
        self.pair = pair
        self._origins = origins
        self._how = how
        self._on_chunk = on_chunk
        self._on_settled = on_settled
        self._on_dropped = on_dropped
        self._over: asyncio.Future[Lost | None] = asyncio.get_running_loop().create_future()
        self._drained = asyncio.Event()
        self._prefill: Leg | None = None
        self._decode: Leg | None = None
        self._begun = False
        self._of_prompt: dict[int, Chunk] = {}
        self._held: list[Chunk] = []
        self._timer: asyncio.Handle | None = None

    async def run(self, path: str, body: bytes, more: Mapping[str, str]) -> Lost | None:
        """Until decode's answer is complete or the try is lost. Cancelled, it drops both halves."""
        try:
            lost = await self._send(path, body, more)
            if lost is None:
                lost = await self._over
        except BaseException:
            self._drop()
            raise
        if lost is not None:
            self._drop(lost)
        return lost

    async def drained(self) -> None:
        """Return when prefill's answer has been read, or has taken too long."""
        try:
            async with asyncio.timeout(self._how.limits.prefill_drain_s):
                await self._drained.wait()
        except TimeoutError:
            assert self._prefill is not None
            self._prefill.fail(LegFault("timeout", "its answer does not end"))
        finally:
            self._drop()

    # Both halves at once

    async def _send(self, path: str, body: bytes, more: Mapping[str, str]) -> Lost | None:
        servers = (self.pair.prefill, self.pair.decode)
        origins = [self._origins[server.url] for server in servers]
        tasks = [asyncio.ensure_future(origin.connect()) for origin in origins]
        try:
            got = await asyncio.gather(*tasks, return_exceptions=True)
        except BaseException:
            _give_back_later(tasks)
            raise
        stand = [c for c in got if isinstance(c, Connection)]
        if len(stand) < 2:
            for connection in stand:
                connection.give_back()
            return self._not_connected(servers, got)
        prefill = self._leg(servers[0], stand[0], self._on_prefill, self._on_prefill_end)
        decode = self._leg(servers[1], stand[1], self._on_decode, self._on_decode_end)
        self._prefill, self._decode = prefill, decode
        requests = [origin.request("POST", path, body, more) for origin in origins]
        prefill.send(requests[0], self._how.limits.first_byte_s)
        if not prefill.is_over:
            decode.send(requests[1], self._how.limits.first_byte_s)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._how.limits.first_token_s, self._no_token)
        return None

    def _leg(
        self,
        server: Server,
        connection: Connection,
        on_chunk: Callable[[Chunk], None],
        ended: Callable[[Leg, LegFault | None], None],
    ) -> Leg:
        return Leg(
            server,
            connection,
            on_chunk,
            ended,
            stream=self._how.stream,
            as_generated=self._how.as_generated,
        )

    def _not_connected(
        self, servers: tuple[Server, Server], got: list[Connection | BaseException]
    ) -> Lost:
        for server, result in zip(servers, got, strict=True):
            if isinstance(result, CannotConnect):
                return Lost(server, LegFault("connect", str(result)))
        [error] = [result for result in got if isinstance(result, BaseException)][:1]
        raise error

    def _no_token(self) -> None:
        """Both answer, and nothing comes: whoever still owes something is to blame."""
        assert self._prefill is not None
        assert self._decode is not None
        late = LegFault("timeout", "no token has come")
        (self._decode if self._prefill.is_over else self._prefill).fail(late)

    # Chunks

    def _on_prefill(self, chunk: Chunk) -> None:
        if self._how.needs_prompt:
            self._of_prompt.setdefault(index_of(chunk), chunk)
            self._let_go()

    def _on_decode(self, chunk: Chunk) -> None:
        if not self._begun:
            self._begun = True
            if self._timer is not None:
                self._timer.cancel()
        if self._how.needs_prompt:
            self._held.append(chunk)
            self._let_go()
        else:
            self._on_chunk(chunk)

    def _let_go(self) -> None:
        """What waited for prefill's half, in order."""
        while self._held and (first := self._of_prompt.get(index_of(self._held[0]))) is not None:
            self._on_chunk(merge_answers(first, self._held.pop(0)))

    # Ends

    def _on_prefill_end(self, leg: Leg, fault: LegFault | None) -> None:
        if fault is None and self._held:
            fault = leg.fault = NOTHING
        if fault is not None and (not self._begun or self._held):
            self._end(Lost(leg.server, fault))
        elif self._decode is not None and self._decode.is_over and not self._decode.fault:
            self._end(None)
        self._settle(leg)

    def _on_decode_end(self, leg: Leg, fault: LegFault | None) -> None:
        assert self._prefill is not None
        if fault is not None:
            self._end(Lost(leg.server, fault))
        elif not self._held:
            self._end(None)
        elif self._prefill.is_over:
            self._end(Lost(self._prefill.server, self._prefill.fault or NOTHING))
        self._settle(leg)

    def _end(self, lost: Lost | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._over.done():
            self._over.set_result(lost)

    def _settle(self, leg: Leg) -> None:
        fault = leg.fault
        if fault is None:
            verdict: Verdict = "well"
        else:
            verdict = "failed" if fault.is_servers else "unknown"
        if leg.server is self.pair.prefill:
            self._drained.set()
        self._on_settled(leg.server, verdict)

    def _drop(self, lost: Lost | None = None) -> None:
        """End what is left of both halves, and tell their servers."""
        if self._timer is not None:
            self._timer.cancel()
        if self._prefill is None or self._decode is None:
            for server in (self.pair.prefill, self.pair.decode):
                blame = lost is not None and lost.server is server and lost.fault.is_servers
                self._on_settled(server, "failed" if blame else "unknown")
            return
        for leg in (self._prefill, self._decode):
            if not leg.is_over:
                leg.drop()
                self._on_settled(leg.server, "unknown")
                self._on_dropped(leg.server)
            elif leg.fault is not None and leg.fault.kind in {"timeout", "garbage", "unhealthy"}:
                self._on_dropped(leg.server)  # it does not know that we have given it up
        self._drained.set()

    def lose(self, server: Server, fault: LegFault) -> None:
        """Something outside says that this server's half is lost."""
        for leg in (self._prefill, self._decode):
            if leg is not None and leg.server is server:
                leg.fail(fault)

    @property
    def prefill_fault(self) -> LegFault | None:
        """What went wrong with prefill, also after decode had begun."""
        return None if self._prefill is None else self._prefill.fault


def _give_back_later(tasks: list["asyncio.Task[Connection]"]) -> None:
    """Connections that are still being made when nobody wants them any more."""

    def close(task: "asyncio.Task[Connection]") -> None:
        if not task.cancelled() and task.exception() is None:
            task.result().give_back()

    for task in tasks:
        task.cancel()
        task.add_done_callback(close)
