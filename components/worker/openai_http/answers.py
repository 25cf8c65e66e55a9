"""What an event of the server says, checked: it is another program's. No I/O."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from components.worker.openai_http.faults import ServerFault

#: ``[[id, logprob, text] of the chosen token, then of the likeliest ones]``
LogprobsOfToken = list[list[int | float | str]]
#: Of an id behind those before it, of which the last few matter.
TextOf = Callable[[int, Sequence[int]], str]

#: Stands for an id that nobody knows.
UNKNOWN_ID: Final = 0
_ID_PREFIX: Final = "token_id:"
_LOGPROB_MIN: Final = -9999.0


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event adds to a choice. ``token_ids`` None: the server does not say.

    ``delta`` is what its parsers made of it (a chat). ``cached_tokens`` comes with usage.
    """

    text: str = ""
    token_ids: list[int] | None = None
    logprobs: list[LogprobsOfToken] | None = None
    prompt_logprobs: list[LogprobsOfToken | None] | None = None
    finish: str | None = None
    stop: str | int | None = None
    delta: dict[str, Any] = field(default_factory=dict)
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """How a choice's events are read: how many alternatives were asked for (None: no logprobs).

    ``text_of`` and ``prompt`` are there when ids mean something here; ``before`` are the choice's
    ids so far, and grow with what is read.
    """

    top: int | None = None
    prompt_top: int | None = None
    text_of: TextOf | None = None
    prompt: list[int] | None = None
    before: list[int] = field(default_factory=list)


def piece_of(event: Mapping[str, Any], reading: Reading) -> Piece:
    """Read an event, or an answer in one piece. Raises ``ServerFault`` for what is neither."""
    try:
        cached = _cached_tokens(event.get("usage"))
        choices = event.get("choices")
        if not choices:
            return Piece(cached_tokens=cached)
        choice = choices[0]
        delta = choice.get("delta") or choice.get("message") or {}
        text = choice.get("text") or delta.get("content") or ""
        ids = choice.get("token_ids")
        if ids is not None and not all(type(i) is int and i >= 0 for i in ids):
            raise ServerFault("token ids that are none")
        if not isinstance(text, str):
            raise ServerFault("a text that is none")
        rows = choice.get("logprobs") if reading.top is not None else None
        of_prompt = None
        if reading.prompt_top is not None:
            of_prompt = choice.get("prompt_logprobs") or event.get("prompt_logprobs")
        return Piece(
            text,
            ids,
            None if rows is None else _rows(rows, ids, reading),
            None
            if of_prompt is None
            else _prompt_rows(of_prompt, reading.prompt, reading.prompt_top or 0),
            choice.get("finish_reason"),
            choice.get("stop_reason"),
            _delta(delta),
            cached,
        )
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ServerFault(f"an answer of another shape: {error!r}") from error


def _cached_tokens(usage: Mapping[str, Any] | None) -> int:
    details = (usage or {}).get("prompt_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)


def _delta(delta: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if delta.get("content"):
        found["content"] = delta["content"]
    if reasoning := delta.get("reasoning") or delta.get("reasoning_content"):
        found["reasoning"] = reasoning
    if delta.get("tool_calls"):
        found["tool_calls"] = delta["tool_calls"]
    return found


def _rows(
    logprobs: Mapping[str, Any], ids: list[int] | None, reading: Reading
) -> list[LogprobsOfToken]:
    top = reading.top or 0
    if (content := logprobs.get("content")) is not None:  # a chat's
        return [_chat_row(token, top) for token in content]
    tokens, values = logprobs["tokens"], logprobs["token_logprobs"]
    likeliest = logprobs.get("top_logprobs") or [None] * len(tokens)
    rows: list[LogprobsOfToken] = []
    for place, (token, value, others) in enumerate(zip(tokens, values, likeliest, strict=True)):
        chosen = _named(token, value, reading)
        if ids is not None:
            chosen[0] = ids[place]
        ranked = sorted((others or {}).items(), key=lambda item: -item[1])
        rows.append([chosen, *(_named(t, v, reading) for t, v in ranked[:top])])
        if ids is not None:
            reading.before.append(ids[place])
    return rows


def _named(token: str, logprob: float | None, reading: Reading) -> list[int | float | str]:
    value = _LOGPROB_MIN if logprob is None else max(_LOGPROB_MIN, float(logprob))
    if reading.text_of is not None and token.startswith(_ID_PREFIX):
        token_id = int(token.removeprefix(_ID_PREFIX))
        return [token_id, value, reading.text_of(token_id, reading.before)]
    return [UNKNOWN_ID, value, token]


def _chat_row(token: Mapping[str, Any], top: int) -> LogprobsOfToken:
    others = token.get("top_logprobs") or []
    return [_named(t["token"], t["logprob"], Reading()) for t in (token, *others[:top])]


def _prompt_rows(
    rows: list[Mapping[str, Any] | None], prompt: list[int] | None, top: int
) -> list[LogprobsOfToken | None]:
    return [
        None if row is None else _prompt_row(row, None if prompt is None else prompt[place], top)
        for place, row in enumerate(rows)
    ]


def _prompt_row(row: Mapping[str, Any], token_id: int | None, top: int) -> LogprobsOfToken:
    """``{id: {logprob, rank, decoded_token}}``: the prompt's own token, then the ``top`` likeliest.

    vLLM writes the prompt's own first.
    """
    own = next(iter(row)) if token_id is None else str(token_id)
    ranked = sorted((of["rank"], i) for i, of in row.items() if of["rank"] <= top)
    return [
        [int(i), max(_LOGPROB_MIN, float(row[i]["logprob"])), row[i].get("decoded_token") or ""]
        for i in (own, *(i for _, i in ranked))
    ]
