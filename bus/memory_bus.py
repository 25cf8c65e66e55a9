"""The bus inside one process, for tests and simulations: the promises of ``bus.bus``, no sockets.

A ``MemoryHub`` stands for the server. Messages really are encoded and decoded, so whatever would
be refused or lost on the wire is refused or lost here too. A member posts into its outgoing buffer;
the buffer empties at the end of the loop turn, in order, straight into the receivers' handlers.

Faults: ``hub.partition("decode-0")`` cuts a member off as a dead link would (what is sent to it is
lost, what it sends waits in its bounded buffer), ``hub.heal("decode-0")`` joins it again;
``hub.stop()`` and ``hub.start()`` do so to all.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from bus.bus import Subscription
from bus.endpoint import INBOX, PAYLOAD_BYTES_MAX, Endpoint, Interest, Outbox, Post
from bus.errors import NotConnected
from bus.subjects import PREFIX


class MemoryHub:
    """What a server is to its clients: who is there, and who listens to what."""

    def __init__(self, *, payload_bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
        self.payload_bytes_max = payload_bytes_max
        self.stopped = False
        self._members: list[MemoryBus] = []
        self._turns: Counter[str] = Counter()

    def partition(self, source: str) -> None:
        """Cut off whoever is here under this name (a later life of it is not)."""
        for member in self._named(source):
            member.cut_off = True

    def heal(self, source: str) -> None:
        """Join it again: it sends what waited, then its ``on_reconnect`` callbacks run."""
        for member in self._named(source):
            member.cut_off = False
            member.rejoin()

    def stop(self) -> None:
        """Cut everyone off, as a killed server does."""
        self.stopped = True

    def start(self) -> None:
        """The end of ``stop``."""
        self.stopped = False
        for member in tuple(self._members):
            member.rejoin()

    def join(self, member: "MemoryBus") -> None:
        """Called by ``MemoryBus.connect``."""
        if member not in self._members:
            self._members.append(member)

    def leave(self, member: "MemoryBus") -> None:
        """Called by ``MemoryBus.close``."""
        if member in self._members:
            self._members.remove(member)

    def route(self, posted: Post, sender: "MemoryBus") -> None:
        """Deliver to all whose interest matches, and to one member of each queue group.

        A member that is cut off still counts, as it does on a server that has not noticed yet: what
        would reach it is lost.
        """
        subject, data, reply = posted
        if subject.startswith(INBOX):
            owners = [m for m in self._members if subject.startswith(m.inbox)]
            if not owners and reply.startswith(INBOX):
                sender.answered(reply, None)
            for member in owners:
                member.answered(subject, data)
            return
        takers: list[tuple[MemoryBus, Interest]] = []
        groups: dict[str, list[tuple[MemoryBus, Interest]]] = {}
        for member in self._members:
            for interest in member.interests:
                if interest.matches(subject):
                    group = (
                        takers if interest.queue is None else groups.setdefault(interest.queue, [])
                    )
                    group.append((member, interest))
        takers += [self._one_of(queue, group) for queue, group in groups.items()]
        if not takers and reply.startswith(INBOX):
            sender.answered(reply, None)
        for member, interest in takers:
            if member.connected:
                interest.arrived(subject, reply, data)

    def _named(self, source: str) -> "list[MemoryBus]":
        return [m for m in self._members if m.source == source]

    def _one_of(
        self, queue: str, group: "list[tuple[MemoryBus, Interest]]"
    ) -> "tuple[MemoryBus, Interest]":
        # In turn, so that a test that runs twice sees the same thing twice.
        self._turns[queue] += 1
        return group[self._turns[queue] % len(group)]


class MemoryBus(Endpoint):
    """A member of a ``MemoryHub``."""

    def __init__(
        self,
        hub: MemoryHub,
        *,
        source: str,
        epoch: int,
        prefix: str = PREFIX,
        inbox_prefix: str | None = None,
        on_fault: Callable[[BaseException], None] | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        super().__init__(
            source=source,
            epoch=epoch,
            prefix=prefix,
            inbox_prefix=inbox_prefix,
            on_fault=on_fault,
        )
        self._hub = hub
        self._outbox = Outbox() if outbox is None else outbox
        self._leaving = False
        self._joined = False
        self.cut_off = False
        self.interests: list[Interest] = []

    @property
    def connected(self) -> bool:
        return self._joined and not (self._closed or self.cut_off or self._hub.stopped)

    @property
    def inbox(self) -> str:
        """What all reply subjects of this member begin with."""
        return self._inbox + "."

    async def connect(self) -> None:
        if self._closed or self._hub.stopped:
            raise NotConnected(f"{self._source}: the hub does not answer")
        self._hub.join(self)
        self._joined = True
        self._empty_soon()

    async def close(self) -> None:
        if self._closed:
            return
        if self.connected:
            with contextlib.suppress(NotConnected):
                await self.flush()
        self._closed = True
        self._counters["dropped_total"] += self._outbox.clear()
        self.interests.clear()
        self._hub.leave(self)

    def rejoin(self) -> None:
        """The link is back."""
        if self.connected:
            self._empty_soon()
            asyncio.get_running_loop().call_soon(self._reconnected)

    def answered(self, subject: str, data: bytes | None) -> None:
        """Something arrived in the inbox."""
        if self.connected:
            self._answer_arrived(subject.rsplit(".", 1)[1], data)

    @property
    def _payload_bytes_max(self) -> int:
        return self._hub.payload_bytes_max

    def _post(self, subject: str, data: bytes, reply: str = "") -> None:
        if self._closed or not self._outbox.offer((subject, data, reply)):
            self._counters["dropped_total"] += 1
            return
        self._empty_soon()

    def _empty_soon(self) -> None:
        if self._outbox and not self._leaving and self.connected:
            self._leaving = True
            asyncio.get_running_loop().call_soon(self._empty)

    def _empty(self) -> None:
        self._leaving = False
        # Only what was there when the turn began: handlers that answer each other end nothing.
        for _ in range(len(self._outbox)):
            if not self.connected:
                return
            self._hub.route(self._outbox.drop_first(), self)
        self._empty_soon()

    async def _attach(self, interest: Interest) -> Subscription:
        if self._closed or not self._joined:
            raise NotConnected(f"{self._source}: connect first")
        self.interests.append(interest)
        return _MemorySubscription(self, interest)


@dataclass(slots=True)
class _MemorySubscription:
    _bus: MemoryBus
    _interest: Interest

    async def unsubscribe(self) -> None:
        self._interest.live = False
        if self._interest in self._bus.interests:
            self._bus.interests.remove(self._interest)
