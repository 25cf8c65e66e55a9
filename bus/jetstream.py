"""A connection that asks JetStream's API: answers are one message, or many up to a status."""

import asyncio
import contextlib
import secrets
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from bus import keys
from bus.endpoint import INBOX, log, server_urls
from bus.errors import NotConnected, StreamUnavailable
from bus.nats_client import SteadyClient, end

CONNECT_TIMEOUT_S: Final = 10.0
#: How long the server may be silent within one answer.
SILENCE_S: Final = 5.0
#: How an answer may end: a single one, the end of a batch, nothing (more) found.
_ENDS: Final = ("", "204", "404")


class Asking:
    """What asks over one connection of its own; ``kind`` names it in errors and at the server."""

    def __init__(self, kind: str, url: str, key_file: Path | None, inbox_owner: str) -> None:
        """``inbox_owner`` names whose permissions, and so whose inbox, are used."""
        self._kind = kind
        self._urls = server_urls(url)
        self._key_file = key_file
        self._inbox_prefix = INBOX + inbox_owner
        self._inbox = f"{self._inbox_prefix}.{kind}-{secrets.token_hex(6)}"
        self._client = SteadyClient()
        self._questions = Questions(self._client, self._inbox)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Return once connected; raises ``NotConnected``."""
        options: dict[str, Any] = {
            "name": self._kind,
            "inbox_prefix": self._inbox_prefix,
            "reconnect_time_wait": 0.2,
            "max_reconnect_attempts": -1,
            "ping_interval": 1,
            "error_cb": self._quiet,
        }
        if self._key_file is not None:
            keys.load(self._key_file)
            options["nkeys_seed"] = str(self._key_file)
        client = SteadyClient()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await client.connect(self._urls, **options)
                questions = Questions(client, self._inbox)
                await questions.listen()
        except (TimeoutError, OSError, NatsError) as error:
            why = client.last_error or error
            await end(client)
            raise NotConnected(f"no {self._kind} at {', '.join(self._urls)}: {why}") from error
        self._client, self._questions = client, questions

    async def close(self) -> None:
        """Disconnect; harmless twice."""
        if self._client.is_connected or self._client.is_reconnecting:
            await end(self._client)

    async def _quiet(self, error: Exception) -> None:
        """Refusals come back as answers; what else goes wrong shows in them as silence."""
        log.debug("%s: %s: %s", self._kind, type(error).__name__, error)


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
            except (NatsError, OSError) as error:  # silence is a TimeoutError, an OSError
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
