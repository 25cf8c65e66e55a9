"""What a simulated model writes: token i is a function of all token ids before it.

The ids, prompt first, are folded into one hash; the hash picks the next token, which is folded in
turn. So a story can be put down after any token and taken up elsewhere from prompt + emitted ids,
and the rest is what it would have been. The same holds for the text, which may lag behind the
ids: while the end of the text could be the beginning of a stop string it is withheld, and how
much is withheld is again a function of the ids alone.

Whoever wants to know what a request must give, gives the same prompt to a `Story` of his own.
"""

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import xxhash

from components.domain.words import END_ID, vocabulary
from schemas.body import SamplingParameters
from schemas.codes import FinishReason

_MASK = (1 << 64) - 1
# Of 2**16, at the end of each sentence. Sentences have 10 tokens on average, marks included, and a
# story has 200.
_STORY_ENDS = 2950
_PARAGRAPH_ENDS = 6000
_COMMA = 5000
_SENTENCE_MIN, _SENTENCE_MAX = 3, 20

#: `[token id, logprob, text]`
Alternative = list[int | float | str]


class Written(NamedTuple):
    """One token. `text` is what became certain with it; `finish` is (reason, stop reason)."""

    token_id: int
    text: str
    logprobs: list[Alternative] | None
    finish: tuple[FinishReason, str | int | None] | None


class Story:
    """One choice of one request, taken up after `emitted`.

    Temperature 0 is greedy: seed and choice do not matter. `max_tokens` and `min_tokens` count from
    the beginning, `emitted` included. `finish` is set when the emitted ids were already complete.
    What has no meaning here (top_p, top_k, penalties) is accepted and changes nothing.
    """

    __slots__ = (
        "_ends",
        "_fold",
        "_held",
        "_language",
        "_last",
        "_sampling",
        "_sentence",
        "count",
        "finish",
    )

    def __init__(
        self,
        prompt: Sequence[int],
        emitted: Sequence[int],
        sampling: SamplingParameters,
        choice: int = 0,
    ) -> None:
        greedy = sampling.temperature == 0
        seed = 0 if greedy or sampling.seed is None else sampling.seed
        key = struct.pack("<QI", seed & _MASK, 0 if greedy else choice + 1)
        self._fold = xxhash.xxh3_64(seed=xxhash.xxh3_64_intdigest(key))
        self._fold.update(struct.pack(f"<{len(prompt)}I", *prompt))
        self._language = vocabulary()
        self._ends = frozenset(self._language.sentence_ends)
        self._sampling = sampling
        self._last = prompt[-1] if prompt else END_ID
        self._sentence = self._words_since_boundary(prompt)
        self._held = ""
        self.count = 0
        self.finish: tuple[FinishReason, str | int | None] | None = None
        for token_id in emitted:
            self._take(token_id)

    def next(self) -> Written:
        """Write one more token. Only while `finish` is None."""
        assert self.finish is None, "the story is over"
        bits = self._fold.intdigest()
        token_id = self._choose(bits)
        logprobs = None
        if self._sampling.logprobs is not None:
            logprobs = self._logprobs(token_id, bits, self._sampling.logprobs)
        text = self._take(token_id)
        return Written(token_id, text, logprobs, self.finish)

    # Which token

    def _choose(self, bits: int) -> int:
        language, last, dice = self._language, self._last, bits & 0xFFFF
        if last in language.boundaries:
            group = language.openings
        elif last in self._ends:
            if dice < _STORY_ENDS and self._may_end:
                return END_ID
            if dice >= 0x10000 - _PARAGRAPH_ENDS:
                return self._allowed((language.paragraph,), 0)
            group = language.capitals
        else:
            hazard = max(0, self._sentence - _SENTENCE_MIN) << 12
            if last == language.comma:
                hazard = 0
            elif dice >= 0x10000 - _COMMA and self._sentence >= _SENTENCE_MIN:
                return self._allowed((language.comma,), 0)
            group = language.words
            if dice < hazard:
                # Full stops, with a question or a call now and then.
                return self._allowed(language.sentence_ends, max(0, (bits >> 16 & 31) - 29))
        return self._allowed(group, (bits >> 16 & 0xFFFFFFFF) % len(group))

    @property
    def _may_end(self) -> bool:
        return not self._sampling.ignore_eos and self.count >= self._sampling.min_tokens

    def _allowed(self, group: tuple[int, ...], place: int) -> int:
        """The token at `place`, or the next one that may come before `min_tokens`."""
        stops = self._sampling.stop_token_ids
        if stops and self.count < self._sampling.min_tokens:
            around = (*group[place:], *group[:place], *self._language.words)
            return next((t for t in around if t not in stops), group[place])
        return group[place]

    def _logprobs(self, token_id: int, bits: int, top: int) -> list[Alternative]:
        """The token, then the `top` likeliest; chances fall by half and add up to less than 1."""
        chance = 0.36 + 0.6 * (bits >> 48) / 0x10000
        text = self._language.text
        chosen: Alternative = [token_id, math.log(chance), text(token_id)]
        ranked = [chosen] if top else []
        words, place, rest = self._language.words, bits >> 24, 1.0 - chance
        while len(ranked) < top:
            place, rest = place + 7, rest / 2
            other = words[place % len(words)]
            if other != token_id:
                ranked.append([other, math.log(rest), text(other)])
        return [chosen, *ranked]

    # What becomes of it

    def _take(self, token_id: int) -> str:
        """Fold the token in; the text that is certain now."""
        self._fold.update(token_id.to_bytes(4, "little"))
        self.count += 1
        language, sampling = self._language, self._sampling
        self._last = token_id
        if token_id in self._ends or token_id in language.boundaries:
            self._sentence = 0
        elif self._sentence < _SENTENCE_MAX:
            self._sentence += 1
        if self._stops_at(token_id):
            return self._flush()
        text = language.text(token_id)
        if sampling.stop:
            text = self._certain(text)
        if self.finish is None and self.count >= sampling.max_tokens:
            self.finish = ("length", None)
            text += self._flush()
        return text

    def _stops_at(self, token_id: int) -> bool:
        """Whether this very token ends the story; its own text is not part of it."""
        if token_id == END_ID and not self._sampling.ignore_eos:
            self.finish = ("stop", None)
        elif token_id in self._sampling.stop_token_ids and self.count > self._sampling.min_tokens:
            self.finish = ("stop", token_id)
        return self.finish is not None

    def _certain(self, text: str) -> str:
        """The part of withheld text + `text` that no stop string can take back."""
        text = self._flush() + text
        if self.count <= self._sampling.min_tokens:
            return text
        found = [(text.find(s), s) for s in self._sampling.stop if s and s in text]
        if found:
            place, stop = min(found)
            self.finish = ("stop", stop)
            return text[:place]
        withheld = max(_overlap(text, s) for s in self._sampling.stop)
        self._held = text[len(text) - withheld :]
        return text[: len(text) - withheld]

    def _flush(self) -> str:
        text, self._held = self._held, ""
        return text

    def _words_since_boundary(self, prompt: Sequence[int]) -> int:
        words = 0
        for token_id in reversed(prompt[-_SENTENCE_MAX:]):
            if token_id in self._ends or token_id in self._language.boundaries:
                break
            words += 1
        return words


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning, but not the whole, of `stop`."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
