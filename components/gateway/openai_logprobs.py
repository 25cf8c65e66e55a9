"""Logprobs as clients get them: two shapes of OpenAI's, and vLLM's for those of the prompt. Pure.

What comes in is what workers send (``schemas.frames``): per token a list of ``[token id, logprob,
text]``, the chosen token first, then the likeliest in order; None for a prompt's first token.
"""

from collections.abc import Iterator, Sequence
from typing import Any

#: One token and its alternatives.
TokenLogprobs = Sequence[Sequence[Any]]


def chat_logprobs(tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """OpenAI's for chats: one object per token."""
    content = []
    for chosen, *alternatives in tokens:
        content.append(_chat_token(chosen) | {"top_logprobs": [*map(_chat_token, alternatives)]})
    return {"content": content, "refusal": None}


def _chat_token(token: Sequence[Any]) -> dict[str, Any]:
    _, logprob, text = token[:3]
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def completion_logprobs(tokens: Sequence[TokenLogprobs], offset: int) -> dict[str, Any]:
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


def echoed_logprobs(
    tokens: Sequence[TokenLogprobs | None], echo: str, first_token: str
) -> dict[str, Any]:
    """The same lists for an echoed prompt; its first token has none, so its text is given.

    A token that the echoed text does not show (a special one) takes no place in it.
    """
    texts = [token[0][2] if token else first_token for token in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [token[0][1] if token else None for token in tokens],
        "top_logprobs": [{a[2]: a[1] for a in t[1:]} if t else None for t in tokens],
        "text_offset": [*_offsets_in(echo, texts)],
    }


def _offsets_in(echo: str, texts: Sequence[str]) -> Iterator[int]:
    offset = 0
    for text in texts:
        yield offset
        if echo.startswith(text, offset):
            offset += len(text)


def joined(first: dict[str, Any] | None, then: dict[str, Any]) -> dict[str, Any]:
    """Parallel lists, one behind the other."""
    return then if first is None else {name: first[name] + then[name] for name in then}


def prompt_logprobs(tokens: Sequence[TokenLogprobs | None]) -> list[dict[str, Any] | None]:
    """vLLM's: per token a map from token id, the token itself first. ``rank`` null: not known."""
    return [None if token is None else _by_id(token) for token in tokens]


def _by_id(token: TokenLogprobs) -> dict[str, Any]:
    chosen, *likeliest = token
    ranks = {alternative[0]: rank for rank, alternative in enumerate(likeliest, 1)}
    return {
        str(token_id): {
            "logprob": logprob,
            "rank": ranks.get(token_id),
            "decoded_token": text,
        }
        for token_id, logprob, text in (entry[:3] for entry in (chosen, *likeliest))
    }
