"""What decode says of one choice, as what a frame entry needs. Pure.

Servers differ in what a chunk of a stream holds (version and settings decide):

    output_ids   all so far | the new ones | missing
    text         all so far | the new part

``completion_tokens`` counts all ids so far, so it tells the first two apart. Without ids the
stream is *opaque*: zeros stand for them, and nobody can continue it elsewhere. All ids come with
all of the text; new ids may come with either, and then the server's own settings tell, or, where
they are unknown, whether the text begins with what was said.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from components.worker.sglang.faults import LegFault, abort_fault
from schemas.body import SamplingParameters

Logprob = list[Any]  # [id, logprob, text]
Finish = tuple[str, str | int | None]


class BadAnswer(ValueError):
    """This is no answer of a server that we know."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one chunk adds. ``finish`` as in ``schemas.frames``, without the cached tokens."""

    ids: list[int]
    text: str
    extra: dict[str, Any] | None
    finish: Finish | None
    cached_tokens: int
    prompt_tokens: int


def fault_in(answer: Mapping[str, Any]) -> LegFault | None:
    """Whether the server says in this chunk that it has given the choice up."""
    finish = meta_of(answer).get("finish_reason")
    if isinstance(finish, Mapping) and finish.get("type") == "abort":
        return abort_fault(dict(finish))
    return None


def index_of(answer: Mapping[str, Any]) -> int:
    """The place of its choice in a batch; 0 for a single one."""
    index = answer.get("index", 0)
    if type(index) is not int or index < 0:
        raise BadAnswer("index is no place in a batch")
    return index


def meta_of(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = answer.get("meta_info")
    if not isinstance(meta, Mapping):
        raise BadAnswer("no meta_info")
    return meta


class ChoiceReader:
    """Reads the chunks of one choice, in order."""

    __slots__ = ("_end_ids", "_known", "_opaque", "_said", "_sampling", "_text_is_delta", "_wants")

    def __init__(
        self,
        sampling: SamplingParameters,
        *,
        text_is_delta: bool | None,
        with_prompt: bool,
        opaque: bool,
        end_ids: Collection[int] = (),
    ) -> None:
        """``with_prompt``: its first entry brings the prompt's logprobs, if they were asked for.

        ``opaque``: ids only count, whatever comes. The first of ``end_ids`` goes without saying.
        """
        self._sampling = sampling
        self._text_is_delta = text_is_delta
        self._wants = with_prompt and sampling.prompt_logprobs is not None
        self._opaque = opaque
        self._end_ids = end_ids
        self._known = 0
        self._said = ""

    @property
    def wants_prompt(self) -> bool:
        """Its next chunk has to be completed by prefill's answer."""
        return self._wants

    def take(self, answer: Mapping[str, Any]) -> Piece:
        """What is new in it. Raises ``BadAnswer``."""
        meta = meta_of(answer)
        ids, opaque, old_text = self._new_ids(answer, meta)
        text = self._new_text(answer.get("text"), old_text=old_text)
        extra: dict[str, Any] = {"opaque": True} if opaque else {}
        if ids and self._sampling.logprobs is not None:
            extra["logprobs"] = _logprobs(meta, len(ids), self._sampling.logprobs)
        if self._wants and (ids or meta.get("finish_reason")):
            self._wants = False
            extra["prompt_logprobs"] = _prompt_logprobs(meta, self._sampling.prompt_logprobs or 0)
        self._known += len(ids)
        return Piece(
            ids,
            text,
            extra or None,
            self._finish(meta.get("finish_reason")),
            _count(meta.get("cached_tokens")),
            _count(meta.get("prompt_tokens")),
        )

    def _new_ids(
        self, answer: Mapping[str, Any], meta: Mapping[str, Any]
    ) -> tuple[list[int], bool, bool | None]:
        """(new ids, whether they only count, whether the text is all so far, if that is known)."""
        ids, total = answer.get("output_ids"), meta.get("completion_tokens")
        known = self._known
        if ids is None:
            grown = total - known if type(total) is int else 1
            return [0] * max(0, grown), True, not self._text_is_delta
        if not isinstance(ids, list) or (total is not None and type(total) is not int):
            raise BadAnswer("output_ids or completion_tokens of another type")
        if total is None or len(ids) >= total:
            # With logprobs, ids that they do not cover yet come with the next chunk.
            end = total if self._sampling.logprobs is not None else None
            new, old_text = ids[known:end], (True if known else None)
        elif known + len(ids) == total:
            new, old_text = ids, None
        else:
            raise BadAnswer(f"{known} ids and {len(ids)} more are not {total}")
        if not all(type(i) is int and 0 <= i < 2**32 for i in new):
            raise BadAnswer("output_ids that are no ids")
        return new, self._opaque, old_text

    def _new_text(self, text: Any, *, old_text: bool | None) -> str:
        if text is None:
            return ""
        if not isinstance(text, str):
            raise BadAnswer("text of another type")
        said = self._said
        if not said:
            self._said = text
            return text
        if old_text is None:
            old_text = not self._text_is_delta
            if self._text_is_delta is None:
                old_text = text.startswith(said)
        if not old_text:
            if self._text_is_delta is None:
                self._said = said + text
            return text
        if len(text) > len(said):  # shorter: a stop text was cut off again, but it has been said
            self._said = text
        return text[len(said) :]

    def _finish(self, finish: Any) -> Finish | None:
        if finish is None:
            return None
        if not isinstance(finish, Mapping) or finish.get("type") not in {"stop", "length"}:
            raise BadAnswer("a finish_reason that is neither stop nor length")
        if finish["type"] == "length":
            return "length", None
        matched = finish.get("matched")
        is_end = matched == next(iter(self._end_ids), None)
        is_named = isinstance(matched, str) or matched in self._sampling.stop_token_ids
        is_other_end = type(matched) is int and matched in self._end_ids
        return "stop", (matched if not is_end and (is_named or is_other_end) else None)


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _logprobs(meta: Mapping[str, Any], count: int, top: int) -> list[list[Logprob]]:
    """Those of the last ``count`` ids: chunks with all so far and with the new ones end alike."""
    chosen = meta.get("output_token_logprobs")
    if not isinstance(chosen, list) or len(chosen) < count:
        raise BadAnswer("fewer output_token_logprobs than output_ids")
    tops = meta.get("output_top_logprobs") if top else None
    alternatives = tops[-count:] if isinstance(tops, list) and len(tops) >= count else []
    alternatives = alternatives or [None] * count
    return [
        [_logprob(one), *[_logprob(other) for other in (others or [])[:top]]]
        for one, others in zip(chosen[-count:], alternatives, strict=True)
    ]


def _prompt_logprobs(meta: Mapping[str, Any], top: int) -> list[list[Logprob] | None]:
    """One entry per prompt token; None where nothing came before it."""
    chosen = meta.get("input_token_logprobs")
    if not isinstance(chosen, list):
        raise BadAnswer("no input_token_logprobs")
    tops = meta.get("input_top_logprobs") if top else None
    alternatives = tops if isinstance(tops, list) and len(tops) == len(chosen) else []
    alternatives = alternatives or [None] * len(chosen)
    return [
        None if one[0] is None else [_logprob(one), *[_logprob(o) for o in (others or [])[:top]]]
        for one, others in zip(chosen, alternatives, strict=True)
    ]


def _logprob(given: Any) -> Logprob:
    """SGLang says ``[logprob, id, text or null]``."""
    try:
        logprob, token_id, *text = given
    except (TypeError, ValueError) as error:
        raise BadAnswer("a logprob of another shape") from error
    return [token_id, logprob, (text[0] if text else None) or ""]
