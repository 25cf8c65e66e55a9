"""The bus on NATS, through nats-py.

How to think about it: nats-py connects, authenticates, parses, reconnects and restores
subscriptions. Three things are ours.

*Sending.* ``publish`` only appends to a bounded buffer; one sender task hands it to nats-py at the
end of the loop turn, in order, and holds it back while there is no connection. When the buffer is
full the newest message is dropped and counted, and the caller sees nothing of it: a question that
was dropped times out.

*Receiving.* nats-py gives each subscription a queue and a task, so subjects overtake each other.
Its public ``msg_class`` is called once per message inside the read of the socket, and a false
result ends the matter there: we put ``_read`` in its place, which finds the subscription by its
number and calls the handler at once. That keeps the order, and costs neither queue nor task.
``_read`` is also the seam for a faster parser: what cuts messages out of the socket only calls it.

*Being alive.* Once a second a message goes to our own inbox; ``connected`` needs one back within
3 s. nats-py closes for ever on errors such as an expired key: then we start a new client.
"""

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from nats.aio.client import Client, Server
from nats.aio.subscription import Subscription as NatsSubscription
from nats.errors import Error as NatsError

from bus import keys
from bus.bus import Subscription
from bus.endpoint import PAYLOAD_BYTES_MAX, Endpoint, Interest, Outbox, log, server_urls
from bus.errors import NotAllowed, NotConnected
from bus.nats_client import ConnectionIsClosed, SteadyClient, end
from bus.subjects import PREFIX

PING_INTERVAL_S: Final = 1
PINGS_OUTSTANDING_MAX: Final = 2
RECONNECT_WAIT_S: Final = (0.1, 0.25)
LIVENESS_INTERVAL_S: Final = 1.0
LIVENESS_MAX_AGE_S: Final = 3.0
CONNECT_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0

_LIVENESS: Final = "live"
_NO_RESPONDERS: Final = "503"
_INBOX_SID: Final = 1
#: Refusals of the server that are kept for ``subscribe`` to look through.
_REFUSALS_MAX: Final = 64


class NatsBus(Endpoint):
    """One process's connection to a NATS server or cluster.

    ``url`` may name several servers, separated by commas. ``key_file`` holds an nkey seed; without
    one the connection is anonymous. ``inbox_prefix`` must be the one that the permissions name.
    """

    def __init__(  # noqa: PLR0913  (all but three have defaults)
        self,
        url: str,
        *,
        source: str,
        epoch: int,
        key_file: Path | None = None,
        prefix: str = PREFIX,
        inbox_prefix: str | None = None,
        on_fault: Callable[[BaseException], None] | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        outbox: Outbox | None = None,
    ) -> None:
        super().__init__(
            source=source,
            epoch=epoch,
            prefix=prefix,
            inbox_prefix=inbox_prefix,
            on_fault=on_fault,
        )
        self._urls = server_urls(url)
        self._key_file = key_file
        self._connect_timeout_s = connect_timeout_s
        self._outbox = Outbox() if outbox is None else outbox
        self._something_to_send = asyncio.Event()
        self._client: Client | None = None
        self._payload_max = PAYLOAD_BYTES_MAX
        self._sids = 0
        self._by_sid: dict[int, Interest] = {}
        self._subscriptions: list[_NatsSubscription] = []
        self._echoed_s = float("-inf")
        self._refusals: deque[str] = deque(maxlen=_REFUSALS_MAX)
        self._tasks: list[asyncio.Task[None]] = []
        self._reviving = False

    @property
    def connected(self) -> bool:
        fresh = time.monotonic() - self._echoed_s < LIVENESS_MAX_AGE_S
        return fresh and self._linked and not self._closed

    @property
    def _linked(self) -> bool:
        """Does nats-py think that it has a connection? It notices a frozen server after 3 s."""
        return self._client is not None and self._client.is_connected

    @property
    def _payload_bytes_max(self) -> int:
        return self._payload_max

    async def connect(self) -> None:
        """Return once connected.

        Raises ``NotConnected`` (the bus is then closed), or what is wrong with the key file.
        """
        self._waiting[_LIVENESS] = self._echoed
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._open_client()
                self._start("bus sender", self._keep_sending())
                self._start("bus liveness", self._keep_alive())
                await self.flush(self._connect_timeout_s)
                self._echoed(None)
        except (TimeoutError, NatsError, NotConnected) as error:
            why = self._client.last_error if self._client else error
            await self._end()
            raise NotConnected(
                f"{self._source}: no connection to {', '.join(self._urls)} within "
                f"{self._connect_timeout_s:g} s: {why or error}"
            ) from error

    async def close(self) -> None:
        if self._closed:
            return
        if self._linked:
            with contextlib.suppress(NotConnected, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._drain()
        await self._end()

    async def _end(self) -> None:
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._counters["dropped_total"] += self._outbox.clear()
        if self._client is not None:
            await end(self._client)

    async def _drain(self) -> None:
        """Let what was sent to us arrive, and what the handlers say to it leave."""
        await self.flush(CLOSE_TIMEOUT_S)
        await asyncio.gather(*(s.drain() for s in self._subscriptions))
        await self.flush(CLOSE_TIMEOUT_S)

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._on_fault(error)

    # Connecting, and being connected.

    async def _open_client(self) -> None:
        """A new connection with all subscriptions on it, own inbox first."""
        if self._key_file is not None:
            keys.load(self._key_file)  # a bad file is told here, not from inside nats-py
        client = SteadyClient()
        # See the module's docstring: called for each message, with what a Msg is made of.
        client.msg_class = cast("Any", self._read)
        self._client = client
        self._sids = 0
        self._by_sid = {}
        await client.connect(**self._options())
        self._payload_max = client.max_payload
        self._sids = _INBOX_SID
        await client.subscribe(f"{self._inbox}.*")
        # Looked up anew each time: subscriptions may come and go while we wait.
        while missing := [s for s in self._subscriptions if s.client is not client]:
            await self._put_on_client(missing[0])

    async def _put_on_client(self, subscription: "_NatsSubscription") -> None:
        assert self._client is not None
        interest = subscription.interest
        # nats-py numbers a client's subscriptions from 1 and shows the number with messages only.
        self._sids += 1
        subscription.sid = self._sids
        subscription.client = self._client
        self._by_sid[self._sids] = interest
        subscription.nats = await self._client.subscribe(interest.pattern, interest.queue or "")

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "servers": self._urls,
            "name": self._source,
            "inbox_prefix": self._inbox.rsplit(".", 1)[0],
            "connect_timeout": 2,
            "reconnect_time_wait": RECONNECT_WAIT_S[0],
            "reconnect_to_server_handler": _any_server_soon,
            "max_reconnect_attempts": -1,
            "ping_interval": PING_INTERVAL_S,
            "max_outstanding_pings": PINGS_OUTSTANDING_MAX,
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnected,
            "reconnected_cb": self._on_reconnected,
            "closed_cb": self._on_closed,
        }
        if self._key_file is not None:
            options["nkeys_seed"] = str(self._key_file)
        return options

    async def _on_error(self, error: Exception) -> None:
        text = str(error)
        if "permissions violation" in text:
            self._counters["not_allowed_total"] += 1
            self._refusals.append(text)
            log.warning("%s: %s", self._source, text)
        else:
            log.debug("%s: %s: %s", self._source, type(error).__name__, text)

    async def _on_disconnected(self) -> None:
        # An echo counts for the connection that it came over: one on the next connection also says
        # that the server has our subscriptions again.
        self._echoed_s = float("-inf")

    async def _on_reconnected(self) -> None:
        self._back()

    async def _on_closed(self) -> None:
        if not self._closed and not self._reviving:
            log.warning("%s: nats-py closed the connection; opening another", self._source)
            self._reviving = True
            self._start("bus revival", self._revive())

    async def _revive(self) -> None:
        """nats-py gave its client up; try with new ones for ever."""
        while True:
            await asyncio.sleep(_jitter_s())
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    await self._open_client()
                break
            except (TimeoutError, NatsError, OSError, ValueError) as error:
                log.debug("%s: not revived: %s", self._source, error)
                if self._client is not None:
                    await end(self._client)
        self._reviving = False
        self._back()

    def _back(self) -> None:
        if self._client is not None:
            self._payload_max = self._client.max_payload
        self._something_to_send.set()
        self._post_liveness()
        self._reconnected()

    async def _keep_alive(self) -> None:
        while not self._closed:
            if self._linked:
                self._post_liveness()
            await asyncio.sleep(LIVENESS_INTERVAL_S)

    def _post_liveness(self) -> None:
        self._post(f"{self._inbox}.{_LIVENESS}", b"")

    def _echoed(self, _data: bytes | None) -> None:
        self._echoed_s = time.monotonic()

    # Sending.

    def _post(self, subject: str, data: bytes, reply: str = "") -> None:
        if self._closed or not self._outbox.offer((subject, data, reply)):
            self._counters["dropped_total"] += 1
            return
        self._something_to_send.set()

    async def _keep_sending(self) -> None:
        """The one sender. Its wake-up is the end of the loop turn in which something was posted."""
        # Looking at _closed matters: nats-py swallows a cancellation while it waits for the socket.
        while not self._closed:
            await self._something_to_send.wait()
            self._something_to_send.clear()
            while self._outbox and self._linked and not self._closed:
                await self._send_first()

    async def _send_first(self) -> None:
        assert self._client is not None
        subject, data, reply = self._outbox.first()
        try:
            # Waits only while the socket takes no more; what comes meanwhile is bounded by _post.
            await self._client.publish(subject, data, reply)
        except ConnectionIsClosed:
            log.debug("%s: %s waits for the next connection", self._source, subject)
        except (NatsError, OSError) as error:
            if not self._linked:
                return  # it stays the first
            self._counters["dropped_total"] += 1
            log.warning("%s: %s not sent: %s", self._source, subject, error)
        if self._outbox:
            self._outbox.drop_first()

    # Receiving.

    def _read(
        self,
        *,
        subject: str,
        reply: str,
        data: bytes,
        headers: dict[str, str] | None,
        _sid: int,
        **_rest: object,
    ) -> None:
        """A message as it is cut out of the socket. Returns None: nats-py has no more to do."""
        interest = self._by_sid.get(_sid)
        if headers is not None:
            self._read_with_headers(subject, headers, _sid)
        elif interest is not None:
            interest.arrived(subject, reply, data)
        elif _sid == _INBOX_SID:
            self._answer_arrived(subject.rpartition(".")[2], data)

    def _read_with_headers(self, subject: str, headers: dict[str, str], sid: int) -> None:
        """We send none, so it is the server: "no responders", or what somebody made it say.

        Whoever may read a record can have JetStream send it to any subject; the headers that come
        with it give it away.
        """
        if sid == _INBOX_SID and headers.get("Status") == _NO_RESPONDERS:
            self._answer_arrived(subject.rpartition(".")[2], None)
        else:
            self._counters["foreign_total"] += 1

    async def _attach(self, interest: Interest) -> Subscription:
        if self._client is None or self._closed:
            raise NotConnected(f"{self._source}: connect first")
        subscription = _NatsSubscription(self, interest)
        self._subscriptions.append(subscription)
        try:
            if not self._reviving:  # else the new client gets it with all others
                await self._put_on_client(subscription)
            await self.flush()
            self._check_allowed(interest.pattern)
        except BaseException:
            await subscription.unsubscribe()
            raise
        return subscription

    def _check_allowed(self, pattern: str) -> None:
        # The refusal comes before the echo of the flush; nats-py gives it in lower case.
        quoted = f'subscription to "{pattern.lower()}"'
        for refusal in tuple(self._refusals):
            if quoted in refusal:
                self._refusals.remove(refusal)
                raise NotAllowed(f"{self._source} may not subscribe to {pattern}")

    def forget(self, subscription: "_NatsSubscription") -> None:
        """Called by ``unsubscribe``."""
        self._by_sid.pop(subscription.sid, None)
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)


@dataclass(slots=True, eq=False)
class _NatsSubscription:
    _bus: NatsBus
    interest: Interest
    client: Client | None = None
    sid: int = 0
    nats: NatsSubscription | None = None

    async def unsubscribe(self) -> None:
        if not self.interest.live:
            return
        self.interest.live = False
        self._bus.forget(self)
        if self.nats is not None:
            with contextlib.suppress(NatsError):  # the connection may be closed by now
                await self.nats.unsubscribe()

    async def drain(self) -> None:
        """Stop new deliveries; return when what was on its way has been handled."""
        if self.nats is not None:
            with contextlib.suppress(NatsError):
                await self.nats.drain()  # type: ignore[no-untyped-call]


def _jitter_s() -> float:
    return random.uniform(*RECONNECT_WAIT_S)


def _any_server_soon(servers: list[Server], _info: dict[str, Any]) -> tuple[Server | None, float]:
    return random.choice(servers), _jitter_s()
