"""Decoding sequences that step together, in closed form.

Every step gives each of them one token, so a sequence needs no attention between joining and
leaving: its counts follow from the number of steps since. The batch therefore keeps only sums:

    ticks      steps so far; a sequence that joined at tick j with n tokens has n + ticks - j now
    context    sum over the sequences of the context that their next step reads
    phases     a sequence needs a new page every 16th tick; phases[p] counts those whose ticks for
               that are p modulo 16, so the pages for any stretch of ticks are a sum of 16 numbers

`grown` says through which tick the pages are taken: the step in progress has its pages already, so
it is `ticks` between steps and `ticks + 1` during one.
"""

from components.domain.engine_model.state import Sequence
from components.domain.pages import PAGE_TOKENS, pages_for


class DecodeBatch:
    """The sequences that decode in one engine."""

    __slots__ = (
        "_ids",
        "_joined",
        "_next_finish",
        "context_tokens",
        "fresh",
        "grown",
        "phases",
        "ticks",
    )

    def __init__(self) -> None:
        self.ticks = 0
        self.grown = 0
        self.context_tokens = 0
        self.phases = [0] * PAGE_TOKENS
        self.fresh: list[Sequence] = []  # those without any token yet
        self._joined: dict[Sequence, int] = {}
        self._ids: tuple[str, ...] | None = ()
        self._next_finish: int | None = None

    def __len__(self) -> int:
        return len(self._joined)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._joined

    @property
    def ids(self) -> tuple[str, ...]:
        """Request ids in order of joining."""
        if self._ids is None:
            self._ids = tuple(sequence.request_id for sequence in self._joined)
        return self._ids

    def join(self, sequence: Sequence) -> None:
        """The sequence takes part from the next step on. Only between steps."""
        self._joined[sequence] = self.ticks
        self.context_tokens += sequence.computed + 1
        self.phases[self._phase(sequence, self.ticks)] += 1
        if not sequence.emitted:
            self.fresh.append(sequence)
        self._changed()

    def leave(self, sequence: Sequence) -> None:
        """Take the sequence out, at any time, and bring its counts up to date."""
        joined = self._joined.pop(sequence)
        self.phases[self._phase(sequence, joined)] -= 1
        if sequence in self.fresh:
            self.fresh.remove(sequence)
        sequence.pages = pages_for(sequence.computed + self.grown - joined)
        sequence.computed += self.ticks - joined
        sequence.emitted += self.ticks - joined
        self.context_tokens -= sequence.computed + 1
        self._changed()

    def computed(self, sequence: Sequence) -> int:
        """Tokens of a member whose KV is there now."""
        return sequence.computed + self.ticks - self._joined[sequence]

    def tick(self, steps: int) -> None:
        """`steps` steps have ended."""
        self.ticks += steps
        self.context_tokens += steps * len(self._joined)

    def finished(self) -> list[Sequence]:
        """Members that have all their tokens."""
        if not self._joined or self.ticks < self._finish_tick():
            return []
        return [s for s, joined in self._joined.items() if joined + s.remaining <= self.ticks]

    def steps_to_finish(self) -> int:
        """Steps until the first member has all its tokens."""
        return self._finish_tick() - self.ticks

    def pages_at(self, tick: int) -> int:
        """New pages that the step ending as number `tick` needs."""
        return self.phases[tick % PAGE_TOKENS]

    def pages_between(self, first: int, last: int) -> int:
        """New pages that the steps `first` to `last` need together."""
        cycles, rest = divmod(last - first + 1, PAGE_TOKENS)
        pages = cycles * len(self._joined)
        return pages + sum(self.pages_at(first + step) for step in range(rest))

    def steps_within(self, pages: int) -> int:
        """How many next steps need no more than `pages` new pages together."""
        cycles, pages = divmod(pages, len(self._joined))
        steps = cycles * PAGE_TOKENS
        while (needed := self.pages_at(self.ticks + steps + 1)) <= pages:
            pages -= needed
            steps += 1
        return steps

    def _finish_tick(self) -> int:
        if self._next_finish is None:
            self._next_finish = min(joined + s.remaining for s, joined in self._joined.items())
        return self._next_finish

    def _changed(self) -> None:
        self._ids = None
        self._next_finish = None

    @staticmethod
    def _phase(sequence: Sequence, joined: int) -> int:
        return (1 + joined - sequence.computed) % PAGE_TOKENS
