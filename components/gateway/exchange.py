"""One HTTP answer while it is being made: a request per prompt in, bytes for one client out.

Tokens are written the moment they arrive, from within the read of the bus; what the client does not
take stays in the streams' own buffers and leaves merged.
"""

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus

from components.gateway.errors import TIMEOUT, ApiError, internal, of_end
from components.gateway.openai_responses import DONE, Dialect, Usage, error_event
from components.gateway.request import End, Request
from components.gateway.streams import Finish, Piece
from components.gateway.writers import StreamWriter


class ClientGone(Exception):
    """Nobody listens any more."""


class Exchange:
    """See the top of the file. ``choices`` is n, the choices of each request.

    The answer's choice numbers go on from prompt to prompt. ``names`` are the client's words for
    what the body calls otherwise.
    """

    def __init__(
        self,
        dialect: Dialect,
        choices: int,
        *,
        include_usage: bool,
        undelivered_max: int,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.error: ApiError | None = None
        self.gone = False
        self.writer: StreamWriter | None = None
        self._dialect = dialect
        self._choices = choices
        self._include_usage = include_usage
        self._undelivered_max = undelivered_max
        self._names = names or {}
        self._first_choice: dict[str, int] = {}
        self._opened: set[int] = set()
        self._waiting: dict[str, Request] = {}
        self._began = False
        self._changed = asyncio.Event()

    def add(self, request: Request) -> None:
        """Before anything is delivered."""
        self._first_choice[request.request_id] = len(self.requests) * self._choices
        self.requests.append(request)

    @property
    def complete(self) -> bool:
        return all(r.finished for r in self.requests)

    @property
    def _all_delivered(self) -> bool:
        return all(s.delivered for r in self.requests for s in r.streams)

    @property
    def usage(self) -> Usage:
        return Usage(
            sum(r.card.prompt_tokens for r in self.requests),
            sum(r.emitted_tokens for r in self.requests),
            sum(r.cached_tokens for r in self.requests),
        )

    @property
    def usage_shown(self) -> Usage:
        """What the client is told of it."""
        return self._dialect.shown(self.usage)

    # What happens to it.

    def deliver(self, request: Request) -> None:
        """Streams of ``request`` have something new."""
        self._began = True
        if self.writer is None:
            self._waiting[request.request_id] = request
            self._changed.set()
        elif self.writer.paused:
            self._waiting[request.request_id] = request
            undelivered = sum(s.undelivered_tokens for r in self.requests for s in r.streams)
            if undelivered > self._undelivered_max:
                self.fail(_slow_client())
        else:
            self._write(request)

    def end(self, end: End) -> None:
        """A request ended without all its tokens; so does the answer."""
        self.fail(of_end(end, self._names))

    def fail(self, error: ApiError) -> None:
        """The client is told, by status or, when that has left, by an event."""
        if self.error is not None or self.gone:
            return
        self.error = error
        self._changed.set()
        if self.writer is not None:
            self._write_waiting()
            self._write_error()

    def abandon(self) -> None:
        """The client left, or is let go."""
        self.gone = True
        self._changed.set()
        if self.writer is not None:
            self.writer.close()

    def drop_connection(self) -> None:
        """Do not wait for the client to take the rest."""
        if self.writer is not None:
            self.writer.abort()

    def blocked_s(self, now_s: float) -> float:
        """For how long the client has taken nothing although there was something."""
        since_s = self.writer.blocked_since_s if self.writer else None
        return 0.0 if since_s is None else now_s - since_s

    # The two ways to answer.

    async def began(self) -> None:
        """Return at the first token; raises ``ApiError`` when none will come, or ``ClientGone``."""
        await self._until(lambda: self._began)

    async def whole(self) -> bytes:
        """The answer in one, when all of it is there; raises as ``began`` does."""
        await self._until(lambda: self.complete)
        pieces = [s.take() or _nothing(s.finish) for r in self.requests for s in r.streams]
        return self._dialect.whole(pieces, self.usage)

    def attach(self, writer: StreamWriter) -> None:
        """Write what is there, and from now on at once."""
        self.writer = writer
        self._write_waiting()
        if self.error is not None:
            self._write_error()
        elif self.gone:
            writer.close()

    def drained(self) -> None:
        """The client has taken what was written: go on."""
        if self._waiting and self.error is None:
            self._write_waiting()

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            if self.gone:
                raise ClientGone
            if self.error is not None:
                raise self.error
            await self._changed.wait()
            self._changed.clear()

    # Bytes.

    def _write_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for request in waiting.values():
            self._write(request)

    def _write(self, request: Request) -> None:
        assert self.writer is not None, "tokens are written once the head has left"
        try:
            self.writer.write(self._rendered(request))
        except (TypeError, ValueError, LookupError, AttributeError):
            # Logprobs or deltas that are none: the worker's bug ends this stream and no other.
            self.fail(internal())
            return
        if request.state == "done" and self._all_delivered:
            if self._include_usage:
                self.writer.write(self._dialect.usage(self.usage))
            self.writer.write(DONE)
            self.writer.close()

    def _rendered(self, request: Request) -> bytes:
        parts = []
        first = self._first_choice[request.request_id]
        for choice, stream in enumerate(request.streams, first):
            piece = stream.take()
            if piece is None:
                continue
            if choice not in self._opened:
                self._opened.add(choice)
                parts.append(self._dialect.opening(choice, piece))
            parts.append(self._dialect.piece(choice, piece))
        return b"".join(parts)

    def _write_error(self) -> None:
        assert self.writer is not None
        assert self.error is not None
        self.writer.write(error_event(self.error) + DONE)
        self.writer.close()


def _nothing(finish: Finish | None) -> Piece:
    return Piece(0, 0, "", [], finish)


def _slow_client() -> ApiError:
    message = "The client reads more slowly than its answer is written"
    return ApiError(HTTPStatus.REQUEST_TIMEOUT, "client_too_slow", message, TIMEOUT)
