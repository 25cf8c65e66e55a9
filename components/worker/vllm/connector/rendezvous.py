"""Where the two ends of a link find each other: one board per link, mirrored over NATS.

Each end puts its entries on its own board and sends them to the other end, who puts them on his.
So nobody owns the board, nobody asks, and nothing is polled; one subscription, which stands before
any link is spoken of, serves all links. An entry may come before its reader knows of the link
(D posts as soon as P has accepted): then the board waits for him, bounded and not for ever.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from components.worker.vllm.connector.link import LinkTimedOut

BOARDS_MAX: Final = 256
KEYS_MAX: Final = 64
UNREAD_TTL_S: Final = 30.0


def link_name(holder: str, puller: str, puller_epoch: int, number: int) -> str:
    """Never used twice: a puller counts its links, and its epoch names its life."""
    return f"{holder} {puller} {puller_epoch:x} {number}"


def link_number(name: str) -> tuple[str, str, int, int]:
    """``(holder, puller, puller epoch, number)``; raises ``ValueError``."""
    holder, puller, epoch, number = name.split(" ")
    return holder, puller, int(epoch, 16), int(number)


class NatsBoard:
    """The board of one link, for the threads of this process."""

    def __init__(self, link: str, send: Callable[[str, bytes], None]) -> None:
        self._link = link
        self._send = send
        self._entries: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self.touched_s = time.monotonic()

    @property
    def link(self) -> str:
        return self._link

    def post(self, key: str, value: bytes) -> None:
        self.put(key, value)
        self._send(key, value)

    def put(self, key: str, value: bytes) -> None:
        """An entry of either end; the first one stands, and there are few."""
        with self._changed:
            if len(self._entries) < KEYS_MAX:
                self._entries.setdefault(key, value)
            self._changed.notify_all()

    def read(self, key: str, deadline_s: float) -> bytes:
        with self._changed:
            while key not in self._entries:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    raise LinkTimedOut(f"link {self._link}: nothing under {key!r} in time")
            return self._entries[key]

    def has(self, key: str) -> bool:
        with self._changed:
            return key in self._entries


class Rendezvous:
    """All boards of one connector. Thread-safe.

    ``send(peer, link, key, value)`` sends one entry to the connector named, without waiting.
    """

    def __init__(self, own_name: str, send: Callable[[str, str, str, bytes], None]) -> None:
        self._own_name = own_name
        self._send = send
        self._boards: OrderedDict[str, NatsBoard] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._boards)

    def board(self, link: str, peer: str) -> NatsBoard:
        """The board of a link that this end is about to open; drop it with ``forget``."""
        return self._find(link, peer)

    def forget(self, link: str) -> None:
        with self._lock:
            self._boards.pop(link, None)

    def on_posted(self, link: str, sender: str, key: str, value: bytes) -> bool:
        """An entry of the other end came; False when it is none of our links'."""
        try:
            holder, puller, _, _ = link_number(link)
        except ValueError:
            return False
        if self._own_name not in (holder, puller) or sender not in (holder, puller):
            return False
        self._find(link, sender).put(key, value)
        return True

    def _find(self, link: str, peer: str) -> NatsBoard:
        now_s = time.monotonic()
        with self._lock:
            self._drop_old(now_s)
            board = self._boards.get(link)
            if board is None:
                board = NatsBoard(link, lambda key, value: self._send(peer, link, key, value))
                self._boards[link] = board
            return board

    def _drop_old(self, now_s: float) -> None:
        """Oldest first: boards that nobody has taken down in time, and what is too many."""
        while self._boards:
            link, board = next(iter(self._boards.items()))
            young = now_s - board.touched_s < UNREAD_TTL_S
            if young and len(self._boards) < BOARDS_MAX:
                return
            del self._boards[link]
