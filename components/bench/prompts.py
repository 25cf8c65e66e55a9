"""Prompts of a given number of tokens, no two of them with a common beginning.

A shared beginning would be served from a prefix cache and measure something else. Over
/v1/completions a prompt is a list of token ids, so its length is exact for any model. A chat needs
text: everyday words, after asking the server twice what a known number of words came to
(``WordCost``), so that its own tokenizer and chat template count.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

#: Ids below are often special tokens; ids above do not exist in the smallest test models.
TOKEN_IDS: Final = range(32, 500)
POOL_TOKENS: Final = 65_536
#: So many items at the head of a prompt belong to it alone.
HEAD: Final = 8

#: Everyday words: one token each, with the space before, in most vocabularies.
WORDS: Final = tuple("""
time year people way day man thing life child world school state family student group country
problem hand part place week system question work number night point home water room mother area
money story fact month lot right study book eye job side kind head house friend father power
hour game line end law car city name minute idea you that was for are with they one have this
from had but what some can out other were all there when use your how said each she which their
will about many then them write would like these her long make see him two has look more could
come did sound most over know than call first who may down been now find any new take get made
live where after back little only round came show every good give our under very through just
great think say help low before turn cause much mean move boy old too same tell does set three
want air well also play small put read large even land here must big high such follow act why
ask men change went light off need picture try again animal near build own page should found
answer grow still learn plant cover food sun four thought let keep never last door between tree
cross hard start might far sea late run while press close real few stop open seem together next
white begin got walk example paper often always music those both
""".split())  # fmt: skip  # noqa: SIM905
OPENING: Final = "Say"


class Prompts(Protocol):
    """Makes the part of a request's body that holds the prompt."""

    def fields(self, index: int, tokens: int) -> dict[str, Any]:
        """For request ``index`` of the run, a prompt of ``tokens`` tokens (as near as possible)."""
        ...


class IdPrompts:
    """Token ids for /v1/completions."""

    def __init__(self, seed: int, ids: range = TOKEN_IDS) -> None:
        self._seed = seed
        self._ids = ids
        self._pool = random.Random(seed).choices(ids, k=POOL_TOKENS)

    def fields(self, index: int, tokens: int) -> dict[str, Any]:
        return {"prompt": _unique(self._seed, index, tokens, self._ids, self._pool)}


@dataclass(frozen=True, slots=True)
class WordCost:
    """A message of n words is ``fixed + per_word * n`` tokens, chat template included."""

    fixed: int = 0
    per_word: float = 1.0

    @classmethod
    def measured(cls, few: tuple[int, int], many: tuple[int, int]) -> "WordCost":
        """From two observations ``(words, tokens)``."""
        per_word = (many[1] - few[1]) / (many[0] - few[0])
        return cls(round(few[1] - per_word * few[0]), per_word or 1.0)

    def words(self, tokens: int) -> int:
        """How many words come nearest to ``tokens``; at least one."""
        return max(1, round((tokens - self.fixed) / self.per_word))


class ChatPrompts:
    """One user message of words for /v1/chat/completions."""

    def __init__(self, seed: int, cost: WordCost) -> None:
        self._seed = seed
        self._cost = cost
        self._pool = random.Random(seed).choices(WORDS, k=POOL_TOKENS)

    def fields(self, index: int, tokens: int) -> dict[str, Any]:
        return words_message(
            _unique(self._seed, index, self._cost.words(tokens), WORDS, self._pool)
        )


def words_message(words: Sequence[str]) -> dict[str, Any]:
    """The chat body's part for one user message of these words."""
    # The same beginning for all: a word without a space before it may cost more than the others.
    return {"messages": [{"role": "user", "content": " ".join((OPENING, *words))}]}


def _unique(
    seed: int, index: int, count: int, alphabet: Sequence[Any], pool: Sequence[Any]
) -> list[Any]:
    """A head of its own, then a stretch of the pool: drawing every item costs ten times more."""
    own = random.Random(f"{seed}.{index}")
    items = own.choices(alphabet, k=min(HEAD, count))
    while (missing := count - len(items)) > 0:
        begin = own.randrange(len(pool))
        items += pool[begin : begin + missing]
    return items
