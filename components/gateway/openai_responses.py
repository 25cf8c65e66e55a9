"""What clients get, OpenAI's way: `Piece`s of choices in, bytes out.

Everything that does not change within a stream is rendered once; per token only numbers and the
text's JSON are put between two constants. An event's ``id:`` reads ``<choice>:<index>``, the index
of the last token whose text it contains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import orjson

from components.gateway.errors import ApiError
from components.gateway.openai_deltas import merged, message
from components.gateway.openai_logprobs import (
    chat_logprobs,
    completion_logprobs,
    echoed_logprobs,
    joined,
    prompt_logprobs,
)
from components.gateway.openai_requests import Api
from components.gateway.streams import Finish, Piece

DONE: Final = b"data: [DONE]\n\n"
STREAM_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one HTTP request, all its prompts and choices together."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @property
    def content(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True, slots=True)
class Echo:
    """What stands before the text of a choice, and the text of the prompt's first token."""

    text: str
    first_token: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """What all events of one answer, and its whole form, have in common.

    ``echoes`` are by choice; ``logprobs`` and ``prompt_logprobs`` say that they were asked for.
    ``parsed``: the engine's parsers say what is content, and what ``reasoning`` (shown or not) or a
    call. ``prompt_only``: nothing but the echo is shown.
    """

    response_id: str
    created_s: int
    model: str
    include_usage: bool = False
    logprobs: bool = False
    echoes: Mapping[int, Echo] | None = None
    prompt_logprobs: bool = False
    prompt_only: bool = False
    parsed: bool = False
    reasoning: bool = True

    def echo(self, choice: int) -> str:
        return self.echoes[choice].text if self.echoes else ""

    def content(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.response_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
        }


class Dialect(Protocol):
    """One of the two APIs: how its events and its whole answers look."""

    def opening(self, choice: int, piece: Piece) -> bytes:
        """The event before a choice's first piece; empty where the API has none."""
        ...

    def piece(self, choice: int, piece: Piece) -> bytes:
        """The events of one piece; empty when it has nothing to show yet."""
        ...

    def usage(self, usage: Usage) -> bytes:
        """The last event, when the client asked for it."""
        ...

    def shown(self, usage: Usage) -> Usage:
        """What the client is told of it."""
        ...

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> bytes:
        """The answer in one, from one piece per choice."""
        ...


def error_event(error: ApiError) -> bytes:
    """An event that ends a stream which cannot have a status any more."""
    return b"data: " + error.body + b"\n\n"


class _Events:
    """The constants around what changes: ``data: {...,"choices":[{"index":`` 0 ``...``."""

    def __init__(self, head: Head, kind: str) -> None:
        common = orjson.dumps(head.content(kind))[:-1]
        self._before = b"data: " + common + b',"choices":[{"index":%d,'
        self._after = b"}]%b}\n\n" % (b',"usage":null' if head.include_usage else b"")
        self._usage = b"data: " + common + b',"choices":[],"usage":'

    def event(self, choice: int, fields: bytes, event_id: bytes = b"") -> bytes:
        return event_id + self._before % choice + fields + self._after

    def usage(self, usage: Usage) -> bytes:
        return self._usage + orjson.dumps(usage.content) + b"}\n\n"


def _event_id(choice: int, piece: Piece) -> bytes:
    last = piece.first_index + piece.tokens - 1
    return b"id: %d:%d\n" % (choice, last) if piece.tokens else b""


class Chat:
    """``/v1/chat/completions``, where content is the text as it comes."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._events = _Events(head, "chat.completion.chunk")

    def opening(self, choice: int, piece: Piece) -> bytes:
        return self._events.event(
            choice,
            b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null',
        )

    def piece(self, choice: int, piece: Piece) -> bytes:
        event_id = _event_id(choice, piece)
        events = b""
        if piece.text or (piece.logprobs and self._head.logprobs):
            delta = b'{"content":%b}' % orjson.dumps(piece.text)
            events = self._event(choice, delta, piece, event_id)
        return events + self._end(choice, piece, event_id)

    def usage(self, usage: Usage) -> bytes:
        return self._events.usage(usage)

    def shown(self, usage: Usage) -> Usage:
        return usage

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> bytes:
        choices = [
            {
                "index": index,
                "message": self._message(piece),
                "logprobs": chat_logprobs(piece.logprobs) if self._head.logprobs else None,
                "finish_reason": _reason(piece.finish),
            }
            for index, piece in enumerate(pieces)
        ]
        content = self._head.content("chat.completion")
        content |= {"choices": choices, "usage": usage.content}
        if self._head.prompt_logprobs:
            content["prompt_logprobs"] = _prompt_logprobs(pieces[0])
        return orjson.dumps(content)

    def _message(self, piece: Piece) -> dict[str, Any]:
        return {"role": "assistant", "content": piece.text, "refusal": None}

    def _event(self, choice: int, delta: bytes, piece: Piece, event_id: bytes) -> bytes:
        logprobs = b"null"
        if self._head.logprobs:
            logprobs = orjson.dumps(chat_logprobs(piece.logprobs))
        fields = b'"delta":%b,"logprobs":%b,"finish_reason":null' % (delta, logprobs)
        return self._events.event(choice, fields, event_id)

    def _end(self, choice: int, piece: Piece, event_id: bytes) -> bytes:
        if piece.finish is None:
            return b""
        reason = orjson.dumps(piece.finish.reason)
        return self._events.event(
            choice, b'"delta":{},"logprobs":null,"finish_reason":' + reason, event_id
        )


class ParsedChat(Chat):
    """The same call, where the engine's parsers say what the text is."""

    def piece(self, choice: int, piece: Piece) -> bytes:
        event_id = _event_id(choice, piece)
        delta = merged(_deltas(piece), reasoning=self._head.reasoning)
        events = b""
        if delta or (piece.logprobs and self._head.logprobs):
            events = self._event(choice, orjson.dumps(delta), piece, event_id)
        return events + self._end(choice, piece, event_id)

    def _message(self, piece: Piece) -> dict[str, Any]:
        return message(_deltas(piece), reasoning=self._head.reasoning)


class Completions:
    """``/v1/completions``."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._events = _Events(head, "text_completion")
        #: How long each choice's text is so far, for the offsets beside logprobs.
        self._lengths: dict[int, int] = {}

    def opening(self, choice: int, piece: Piece) -> bytes:
        echo = self._head.echo(choice)
        if not echo:
            return b""
        return self._event(choice, echo, orjson.dumps(self._echoed(choice, piece)), b"null", b"")

    def piece(self, choice: int, piece: Piece) -> bytes:
        if self._head.prompt_only:
            return self._event(choice, "", b"null", b'"length"', b"") if piece.finish else b""
        if not piece.text and not piece.finish and not (piece.logprobs and self._head.logprobs):
            return b""
        logprobs = b"null"
        if self._head.logprobs:
            offset = self._lengths.get(choice, len(self._head.echo(choice)))
            self._lengths[choice] = offset + len(piece.text)
            logprobs = orjson.dumps(completion_logprobs(piece.logprobs, offset))
        reason = orjson.dumps(_reason(piece.finish))
        return self._event(choice, piece.text, logprobs, reason, _event_id(choice, piece))

    def usage(self, usage: Usage) -> bytes:
        return self._events.usage(self.shown(usage))

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> bytes:
        choices = [self._choice(index, piece) for index, piece in enumerate(pieces)]
        content = self._head.content("text_completion")
        return orjson.dumps(content | {"choices": choices, "usage": self.shown(usage).content})

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        head = self._head
        echo = head.echo(index)
        logprobs = self._echoed(index, piece)
        if head.logprobs and not head.prompt_only:
            logprobs = joined(logprobs, completion_logprobs(piece.logprobs, len(echo)))
        choice = {
            "index": index,
            "text": echo if head.prompt_only else echo + piece.text,
            "logprobs": logprobs,
            "finish_reason": "length" if head.prompt_only else _reason(piece.finish),
        }
        if head.prompt_logprobs:
            choice["prompt_logprobs"] = _prompt_logprobs(piece)
        return choice

    def _echoed(self, choice: int, piece: Piece) -> dict[str, Any] | None:
        """Logprobs of the echoed prompt, when they were asked for."""
        head = self._head
        tokens = piece.more.prompt_logprobs if piece.more else None
        if not head.echoes or not head.logprobs or not tokens:
            return None
        echo = head.echoes[choice]
        return echoed_logprobs(tokens, echo.text, echo.first_token)

    def shown(self, usage: Usage) -> Usage:
        """A token that is not shown is not counted."""
        return replace(usage, completion_tokens=0) if self._head.prompt_only else usage

    def _event(
        self, choice: int, text: str, logprobs: bytes, reason: bytes, event_id: bytes
    ) -> bytes:
        fields = b'"text":%b,"logprobs":%b,"finish_reason":%b'
        return self._events.event(choice, fields % (orjson.dumps(text), logprobs, reason), event_id)


def dialect(api: Api, head: Head) -> Dialect:
    """How this API speaks."""
    if api == "completions":
        return Completions(head)
    return ParsedChat(head) if head.parsed else Chat(head)


def _reason(finish: Finish | None) -> str | None:
    return finish.reason if finish else None


def _deltas(piece: Piece) -> Sequence[Mapping[str, Any]]:
    return piece.more.deltas if piece.more else ()


def _prompt_logprobs(piece: Piece) -> list[dict[str, Any] | None] | None:
    tokens = piece.more.prompt_logprobs if piece.more else None
    return prompt_logprobs(tokens) if tokens else None
