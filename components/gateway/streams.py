"""One choice of one request as its tokens arrive: in order, once each, whoever sends them. Pure.

How to think about it. Token ids are what is counted: ``token_ids`` is the contiguous beginning of
the choice, over all attempts, and its length is the next index that is missing. Text may lag
behind ids and is only ever appended. An entry that continues exactly there is taken; one that lies
before is a duplicate; one that lies behind shows a gap and is held until the worker has filled it.
What was taken and not yet written to the client waits here, so that a slow client costs no second
buffer.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

#: What became of an entry: it is new for the client, it is not, something before it is missing.
FRESH: Final = 0
OLD: Final = 1
GAP: Final = 2
Verdict = Literal[0, 1, 2]


@dataclass(frozen=True, slots=True)
class Finish:
    """How a choice ended; ``stop`` names the stop text or token that ended it."""

    reason: str
    stop: str | int | None = None
    cached_tokens: int = 0


@dataclass(slots=True)
class More:
    """What only some requests ask for (``schemas.frames``): parsed deltas, logprobs of the prompt.

    ``prompt_logprobs`` come once, with the first piece.
    """

    deltas: list[Mapping[str, Any]] = field(default_factory=list)
    prompt_logprobs: list[Any] | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What a client has not been sent yet: ``tokens`` ids from ``first_index`` on, merged."""

    first_index: int
    tokens: int
    text: str
    logprobs: list[Any]
    finish: Finish | None
    more: More | None = None


@dataclass(slots=True)
class ChoiceStream:
    """See the top of the file. At most ``held_max`` entries wait behind a gap; repair asks from the
    gap on, so what is not held comes again.
    """

    held_max: int = 512
    token_ids: "array[int]" = field(default_factory=lambda: array("I"))
    finish: Finish | None = None
    #: Where the current attempt had to begin.
    base: int = 0
    #: The next index that the worker is known to use; above ours, a tail was lost.
    high_water: int = 0
    #: The ids only count: nobody else can go on from them.
    opaque: bool = False
    calls_tools: bool = False
    _held: dict[int, tuple[Sequence[int], str, Any, Any]] = field(default_factory=dict)
    _taken: int = 0
    _texts: list[str] = field(default_factory=list)
    _logprobs: list[Any] = field(default_factory=list)
    _more: More | None = None
    _prompt_seen: bool = False
    _finish_taken: bool = False

    @property
    def next_index(self) -> int:
        return len(self.token_ids)

    @property
    def has_gap(self) -> bool:
        """Is something known to exist that did not arrive?"""
        return self.finish is None and (bool(self._held) or self.high_water > len(self.token_ids))

    @property
    def delivered(self) -> bool:
        """Has everything, the end included, been taken?"""
        return self._finish_taken

    @property
    def undelivered_tokens(self) -> int:
        return len(self.token_ids) - self._taken

    def accept(
        self, first_index: int, token_ids: Sequence[int], text: str, extra: Any, finish: Any
    ) -> Verdict:
        """Take one entry of the current attempt (``schemas.frames``): FRESH, OLD or GAP.

        Raises TypeError, ValueError, OverflowError or IndexError for values that no worker of ours
        sends; the stream is as before then.
        """
        if self.finish is not None:
            return OLD
        next_index = len(self.token_ids)
        if not token_ids and not text and finish is None:
            self.high_water = max(self.high_water, first_index)
            return GAP if first_index > next_index else OLD
        if first_index == next_index:
            self._append(token_ids, text, extra, finish)
            if self._held:
                self._drain_held()
            return FRESH
        if first_index > next_index:
            if len(self._held) < self.held_max:
                self._held[first_index] = (token_ids, text, extra, finish)
            self.high_water = max(self.high_water, first_index + len(token_ids))
            return GAP
        # An entry across our position cannot be cut: its text belongs to no single id. Ask anew.
        end = first_index + len(token_ids) + (finish is not None)
        self.high_water = max(self.high_water, end)
        return GAP if end > next_index else OLD

    def begin_attempt(self) -> None:
        """The attempt is fenced: the next one starts at ``base``, what is held is worthless."""
        self._held.clear()
        self.base = self.high_water = len(self.token_ids)

    def end(self, finish: Finish) -> None:
        """Finish here although no worker said so: nothing more can follow."""
        self.finish = finish
        self._held.clear()

    def take(self) -> Piece | None:
        """What is new since the last call, None when nothing is."""
        ends_now = self.finish is not None and not self._finish_taken
        tokens = len(self.token_ids) - self._taken
        if not tokens and not self._texts and not ends_now:
            return None
        texts, logprobs, more = self._texts, self._logprobs, self._more
        piece = Piece(
            self._taken,
            tokens,
            texts[0] if len(texts) == 1 else "".join(texts),
            logprobs,
            self.finish if ends_now else None,
            more,
        )
        self._taken += tokens
        self._texts = []
        self._logprobs = []
        self._more = None
        self._finish_taken = ends_now or self._finish_taken
        return piece

    def _append(self, token_ids: Sequence[int], text: str, extra: Any, finish: Any) -> None:
        ids = array("I", token_ids)  # checked as a whole before anything changes
        end = None if finish is None else _checked(finish)
        if extra:
            self._take_extra(extra)
        self.token_ids.extend(ids)
        if text:
            self._texts.append(text)
        if end is not None:
            self.end(end)

    def _take_extra(self, extra: Mapping[str, Any]) -> None:
        logprobs, deltas = extra.get("logprobs"), extra.get("deltas")
        prompt_logprobs = extra.get("prompt_logprobs")
        # A list of anything is taken; what is in it is looked at when it is written.
        for given in (logprobs, deltas, prompt_logprobs):
            if given is not None and type(given) is not list:
                raise TypeError("extras are lists")
        calls = any("tool_calls" in delta for delta in deltas or ())
        self.calls_tools = self.calls_tools or calls
        if logprobs:
            self._logprobs.extend(logprobs)
        if deltas:
            self._more = self._more or More()
            self._more.deltas.extend(deltas)
        # An attempt that goes on from tokens brings those of the prompt once more.
        if prompt_logprobs and not self._prompt_seen:
            self._more = self._more or More()
            self._more.prompt_logprobs = prompt_logprobs
            self._prompt_seen = True
        self.opaque = self.opaque or extra.get("opaque") is True

    def _drain_held(self) -> None:
        while self.finish is None:
            entry = self._held.pop(len(self.token_ids), None)
            if entry is None:
                break
            self._append(*entry)
        passed = [index for index in self._held if index < len(self.token_ids)]
        for index in passed:
            del self._held[index]


def _checked(finish: Any) -> Finish:
    """From ``[reason, stop or nil, cached tokens]``; raises TypeError or ValueError."""
    reason, stop, cached_tokens = finish[:3]
    if type(reason) is not str or type(cached_tokens) is not int:
        raise TypeError("a finish that is none")
    return Finish(reason, stop, cached_tokens)
