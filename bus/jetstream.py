"""Questions to JetStream's API whose answers are one message, or many up to a status."""

import asyncio
import contextlib
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from bus.errors import StreamUnavailable

#: How long the server may be silent within one answer.
SILENCE_S: Final = 5.0
#: How an answer may end: a single one, the end of a batch, nothing (more) found.
_ENDS: Final = ("", "204", "404")


class Questions:
    """One question at a time over ``client``; answers come to ``<inbox>.<number>``."""

    def __init__(self, client: Client, inbox: str) -> None:
        self._client = client
        self._inbox = inbox
        self._asked = 0
        self._answer: _Answer | None = None
        self._one_at_a_time = asyncio.Lock()

    async def listen(self) -> None:
        """Before the first question, once the client is connected."""
        await self._client.subscribe(f"{self._inbox}.*", cb=self._arrived)

    async def ask(
        self,
        stream: str,
        subject: str,
        question: bytes,
        *,
        one: bool,
        headers: dict[str, str] | None = None,
    ) -> list[Msg]:
        """``one`` answer, or all up to the status that ends a batch.

        Raises ``StreamUnavailable``.
        """
        # Not nats-py's request(): its wait_for can lose a cancellation (before Python 3.12).
        async with self._one_at_a_time:
            self._asked += 1
            self._answer = answer = _Answer(f"{self._inbox}.{self._asked:x}", one=one)
            try:
                await self._client.publish(subject, question, answer.address, headers)
                await answer.complete(SILENCE_S)
            except (NatsError, TimeoutError) as error:
                raise StreamUnavailable(f"{stream}: {type(error).__name__}") from error
            finally:
                self._answer = None
        if answer.status not in _ENDS:
            raise StreamUnavailable(f"{stream}: status {answer.status}")
        return answer.messages

    async def _arrived(self, message: Msg) -> None:
        answer = self._answer
        if answer is not None and message.subject == answer.address:
            answer.take(message)


class _Answer:
    """What has arrived of one answer."""

    def __init__(self, address: str, *, one: bool) -> None:
        self.address = address
        self.messages: list[Msg] = []
        self.status = ""
        self._one = one
        self._ended = asyncio.Event()

    def take(self, message: Msg) -> None:
        self.status = (message.headers or {}).get("Status", "")
        if not self.status:
            self.messages.append(message)
        if self.status or self._one:
            self._ended.set()

    async def complete(self, silence_s: float) -> None:
        """Return at the end of the answer; raises ``TimeoutError`` when nothing more comes."""
        seen = -1
        while not self._ended.is_set():
            if len(self.messages) == seen:
                raise TimeoutError
            seen = len(self.messages)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(silence_s):
                    await self._ended.wait()
