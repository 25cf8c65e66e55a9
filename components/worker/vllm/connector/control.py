"""A connector's bus, for threads: its own event loop in a thread of its own.

An engine's process has no event loop that we could share. Everything here may be called from any
thread but the loop's own; handlers are called in the loop's thread and must not wait.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError as FutureCancelled
from pathlib import Path
from typing import Final, TypeVar

from bus import subjects
from bus.bus import Bus, Received
from bus.errors import AskTimedOut, BusError, NotConnected
from bus.nats_bus import NatsBus
from bus.permissions import inbox_prefix
from bus.subjects import ANY, PREFIX
from components.worker.vllm.connector.rendezvous import Rendezvous
from schemas.links import KvMoved, PostLinkKey, PullKv, PullKvReply, ReleaseKv
from schemas.message import Message

R = TypeVar("R", bound=Message)

START_TIMEOUT_S: Final = 15.0
#: What a thread waits longer than the bus itself would: only if the loop is gone.
GRACE_S: Final = 1.0
BACK_S: Final = 2.0

OnPull = Callable[[Received[PullKv]], None]
OnRelease = Callable[[ReleaseKv], None]


class Control:
    """One connector's connection. ``name`` is also its identity to the server."""

    def __init__(
        self,
        name: str,
        epoch: int,
        url: str,
        *,
        key_file: Path | None = None,
        key_shared: bool = False,
        prefix: str = PREFIX,
    ) -> None:
        self.name = name
        self.epoch = epoch
        self.rendezvous = Rendezvous(name, self._post_key)
        self._url = url
        self._key_file = key_file
        self._key_shared = key_shared
        self._prefix = prefix
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"{name} bus", daemon=True)
        self._bus: Bus | None = None
        self._back_s = float("-inf")

    def start(self, on_pull: OnPull, on_release: OnRelease) -> None:
        """Connect and subscribe; raises ``NotConnected``."""
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self._start(on_pull, on_release), self._loop)
        try:
            started.result(START_TIMEOUT_S)
        except TimeoutError:
            self.stop()
            raise NotConnected(f"{self.name}: not connected in {START_TIMEOUT_S:g} s") from None
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Say what was published, disconnect, end the thread. Harmless twice."""
        if self._loop.is_closed():
            return
        if self._bus is not None and self._thread.is_alive():
            closing = asyncio.run_coroutine_threadsafe(self._bus.close(), self._loop)
            try:
                closing.result(START_TIMEOUT_S)
            except (TimeoutError, BusError):
                closing.cancel()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(START_TIMEOUT_S)
        if not self._thread.is_alive():
            self._loop.close()

    def publish(self, subject: str, message: Message) -> None:
        """Send, do not wait; after ``stop`` it is lost."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._publish, subject, message)

    def ask(self, subject: str, question: Message, reply: type[R], timeout_s: float) -> R:
        """One question, one answer; raises ``NoResponders`` at once, ``AskTimedOut`` later."""
        if self._bus is None or self._loop.is_closed():
            raise NotConnected(f"{self.name}: the bus is closed")
        asking = asyncio.run_coroutine_threadsafe(
            self._bus.ask(subject, question, reply, timeout_s=timeout_s), self._loop
        )
        try:
            return asking.result(timeout_s + GRACE_S)
        except TimeoutError:
            asking.cancel()
            raise AskTimedOut(f"{subject}: the bus did not answer in time") from None
        except FutureCancelled:
            raise NotConnected(f"{self.name}: the bus was closed") from None

    def answer(self, question: Received[PullKv], reply: PullKvReply) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._answer, question, reply)

    def moved(self, worker: str, report: KvMoved) -> None:
        self.publish(subjects.kv_moved(worker), report)

    @property
    def is_just_back(self) -> bool:
        """Has NATS been away? Then others may still be on their way back."""
        return time.monotonic() - self._back_s < BACK_S

    # In the loop's thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _start(self, on_pull: OnPull, on_release: OnRelease) -> None:
        bus = NatsBus(
            self._url,
            source=self.name,
            epoch=self.epoch,
            key_file=self._key_file,
            prefix=self._prefix,
            inbox_prefix=inbox_prefix("connector", ANY if self._key_shared else self.name),
        )
        self._bus = bus
        bus.on_reconnect(self._on_reconnect)
        await bus.connect()
        # First what links need: whoever asks for a pull posts as soon as it is accepted.
        await bus.subscribe(subjects.post_link_key(self.name), PostLinkKey, self._on_key)
        await bus.subscribe(
            subjects.release_kv(self.name), ReleaseKv, lambda got: on_release(got.message)
        )
        await bus.subscribe(subjects.pull_kv(self.name), PullKv, on_pull)

    def _on_key(self, received: Received[PostLinkKey]) -> None:
        entry = received.message
        self.rendezvous.on_posted(entry.link, entry.sender, entry.key, entry.value)

    def _post_key(self, peer: str, link: str, key: str, value: bytes) -> None:
        entry = PostLinkKey(link=link, sender=self.name, key=key, value=value)
        self.publish(subjects.post_link_key(peer), entry)

    def _on_reconnect(self) -> None:
        self._back_s = time.monotonic()

    def _publish(self, subject: str, message: Message) -> None:
        assert self._bus is not None
        self._bus.publish(subject, message)

    def _answer(self, question: Received[PullKv], reply: PullKvReply) -> None:
        assert self._bus is not None
        self._bus.respond(question, reply)
