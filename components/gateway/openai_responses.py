"""What clients get, OpenAI's way: `Piece`s of choices in, bytes out.

Everything that does not change within a stream is rendered once; per token only numbers and the
text's JSON are put between two constants. An event's ``id:`` reads ``<choice>:<index>``, the index
of the last token whose text it contains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from components.gateway.errors import ApiError
from components.gateway.openai_requests import Api
from components.gateway.streams import Finish, Piece

DONE: Final = b"data: [DONE]\n\n"
STREAM_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

#: One token and its alternatives, as workers send them: ``[token id, logprob, text]`` each.
TokenLogprobs = Sequence[Sequence[Any]]


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
class Head:
    """What all events of one answer, and its whole form, have in common.

    ``echoes`` stands before the text of each choice; ``logprobs`` says that they were asked for.
    """

    response_id: str
    created_s: int
    model: str
    include_usage: bool = False
    logprobs: bool = False
    echoes: Mapping[int, str] | None = None

    def echo(self, choice: int) -> str:
        return self.echoes.get(choice, "") if self.echoes else ""

    def content(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.response_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
        }


class Dialect(Protocol):
    """One of the two APIs: how its events and its whole answers look."""

    def opening(self, choice: int) -> bytes:
        """The event that begins a choice; empty where the API has none."""
        ...

    def piece(self, choice: int, piece: Piece) -> bytes:
        """The events of one piece; empty when it has nothing to show yet."""
        ...

    def usage(self, usage: Usage) -> bytes:
        """The last event, when the client asked for it."""
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
    """``/v1/chat/completions``."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._events = _Events(head, "chat.completion.chunk")

    def opening(self, choice: int) -> bytes:
        return self._events.event(
            choice,
            b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null',
        )

    def piece(self, choice: int, piece: Piece) -> bytes:
        event_id = _event_id(choice, piece)
        events = b""
        if piece.text or (piece.logprobs and self._head.logprobs):
            events = self._events.event(
                choice,
                b'"delta":{"content":%b},"logprobs":%b,"finish_reason":null'
                % (orjson.dumps(piece.text), self._logprobs(piece)),
                event_id,
            )
        if piece.finish is not None:
            reason = orjson.dumps(piece.finish.reason)
            events += self._events.event(
                choice, b'"delta":{},"logprobs":null,"finish_reason":' + reason, event_id
            )
        return events

    def usage(self, usage: Usage) -> bytes:
        return self._events.usage(usage)

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> bytes:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": piece.text, "refusal": None},
                "logprobs": _chat_logprobs(piece.logprobs) if self._head.logprobs else None,
                "finish_reason": _reason(piece.finish),
            }
            for index, piece in enumerate(pieces)
        ]
        content = self._head.content("chat.completion")
        return orjson.dumps(content | {"choices": choices, "usage": usage.content})

    def _logprobs(self, piece: Piece) -> bytes:
        if not self._head.logprobs:
            return b"null"
        return orjson.dumps(_chat_logprobs(piece.logprobs))


class Completions:
    """``/v1/completions``."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._events = _Events(head, "text_completion")
        #: How long each choice's text is so far, for the offsets beside logprobs.
        self._lengths: dict[int, int] = {}

    def opening(self, choice: int) -> bytes:
        echo = self._head.echo(choice)
        if not echo:
            return b""
        return self._event(choice, echo, b"null", b"null", b"")

    def piece(self, choice: int, piece: Piece) -> bytes:
        if not piece.text and not piece.finish and not (piece.logprobs and self._head.logprobs):
            return b""
        logprobs = b"null"
        if self._head.logprobs:
            offset = self._lengths.get(choice, len(self._head.echo(choice)))
            self._lengths[choice] = offset + len(piece.text)
            logprobs = orjson.dumps(_completion_logprobs(piece.logprobs, offset))
        reason = orjson.dumps(_reason(piece.finish))
        return self._event(choice, piece.text, logprobs, reason, _event_id(choice, piece))

    def usage(self, usage: Usage) -> bytes:
        return self._events.usage(usage)

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> bytes:
        choices = []
        for index, piece in enumerate(pieces):
            echo = self._head.echo(index)
            logprobs = (
                _completion_logprobs(piece.logprobs, len(echo)) if self._head.logprobs else None
            )
            choices.append(
                {
                    "index": index,
                    "text": echo + piece.text,
                    "logprobs": logprobs,
                    "finish_reason": _reason(piece.finish),
                }
            )
        content = self._head.content("text_completion")
        return orjson.dumps(content | {"choices": choices, "usage": usage.content})

    def _event(
        self, choice: int, text: str, logprobs: bytes, reason: bytes, event_id: bytes
    ) -> bytes:
        fields = b'"text":%b,"logprobs":%b,"finish_reason":%b'
        return self._events.event(choice, fields % (orjson.dumps(text), logprobs, reason), event_id)


def dialect(api: Api, head: Head) -> Dialect:
    """How this API speaks."""
    return Chat(head) if api == "chat" else Completions(head)


def _reason(finish: Finish | None) -> str | None:
    return finish.reason if finish else None


def _chat_logprobs(tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    content = []
    for chosen, *alternatives in tokens:
        content.append(_chat_token(chosen) | {"top_logprobs": [*map(_chat_token, alternatives)]})
    return {"content": content, "refusal": None}


def _chat_token(token: Sequence[Any]) -> dict[str, Any]:
    _, logprob, text = token[:3]
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _completion_logprobs(tokens: Sequence[TokenLogprobs], offset: int) -> dict[str, Any]:
    """Parallel lists, one place per token; ``text_offset`` counts characters of the answer."""
    offsets = []
    for chosen, *_ in tokens:
        offsets.append(offset)
        offset += len(chosen[2])
    return {
        "tokens": [chosen[2] for chosen, *_ in tokens],
        "token_logprobs": [chosen[1] for chosen, *_ in tokens],
        "top_logprobs": [{a[2]: a[1] for a in alternatives} for _, *alternatives in tokens],
        "text_offset": offsets,
    }
