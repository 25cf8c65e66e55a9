"""What both step loops share: the queue, who runs, who holds which pages, and what is reported.

A request is in one of three places: `waiting`, `running` (being prefilled or decoding), or `pinned`
(a finished prefill whose pages wait for `release`). Moving it between them, and its pages with it,
happens here and only here, so that nothing can leak on the way.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from components.domain.engine_model.events import (
    Admitted,
    Finished,
    FirstToken,
    ModelEvent,
    PagesRemoved,
    PagesStored,
    Preempted,
    PrefillFinished,
)
from components.domain.engine_model.page_cache import PageCache
from components.domain.engine_model.request import (
    DuplicateRequest,
    EngineLimits,
    ModelRequest,
    RequestTooLarge,
    WaitingQueueFull,
)
from components.domain.pages import PAGE_TOKENS, pages_for


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside the model.

    `computed` tokens have their KV; `target` is what a prefill must reach; `emitted` tokens came
    out. While a sequence decodes in a `DecodeBatch`, `computed`, `emitted` and `pages` are as of
    its joining, and the batch brings them up to date when it leaves.
    """

    request: ModelRequest
    hashes: tuple[int, ...]
    computed: int = 0
    target: int = 0
    emitted: int = 0
    pages: int = 0
    published: int = 0
    seat: int = 0  # number of its admission
    life: int = 0  # goes up whenever it stops running: what was planned before is void

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def tokens(self) -> int:
        """Tokens whose KV is needed before the next one can be sampled."""
        return self.request.prompt_tokens + self.emitted

    @property
    def to_prefill(self) -> int:
        """Tokens still to be prefilled: of a waiting one all, as nobody knows its hits yet."""
        return self.target - self.computed

    @property
    def remaining(self) -> int:
        """Tokens still to come out."""
        return self.request.output_tokens - self.emitted

    @property
    def kv_arrives(self) -> bool:
        """Its KV came from outside. After a preemption it is computed here like any other."""
        return self.request.kind == "decode" and not self.life


class EngineState:
    """Queue, running sequences, pages and counters of one engine."""

    __slots__ = (
        "cache",
        "clock_s",
        "events",
        "hit_tokens",
        "limits",
        "output_tokens",
        "pinned",
        "preemptions",
        "prefilling",
        "prompt_tokens",
        "running",
        "seats",
        "steps",
        "waiting",
    )

    def __init__(self, limits: EngineLimits, kv_pages: int) -> None:
        self.limits = limits
        self.cache = PageCache(kv_pages)
        self.clock_s = 0.0
        self.events: list[ModelEvent] = []
        self.waiting: OrderedDict[str, Sequence] = OrderedDict()
        self.running: dict[str, Sequence] = {}  # in order of admission
        self.prefilling: dict[str, Sequence] = {}  # those of the running that have no KV yet
        self.pinned: dict[str, Sequence] = {}
        self.seats = 0
        self.steps = 0
        self.prompt_tokens = 0
        self.hit_tokens = 0
        self.output_tokens = 0
        self.preemptions = 0

    def find(self, request_id: str) -> Sequence | None:
        return (
            self.running.get(request_id)
            or self.waiting.get(request_id)
            or self.pinned.get(request_id)
        )

    def enqueue(self, request: ModelRequest) -> None:
        """Put a new request last in line. Raises an EngineModelError and changes nothing."""
        if self.find(request.request_id):
            raise DuplicateRequest(request.request_id)
        if request.pages_max > self.cache.pages_total:
            raise RequestTooLarge(
                f"{request.request_id} needs {request.pages_max} pages of {self.cache.pages_total}"
            )
        if len(self.waiting) >= self.limits.waiting_max:
            raise WaitingQueueFull(f"{len(self.waiting)} requests wait")
        sequence = Sequence(request, request.page_hashes)
        sequence.target = 0 if request.kind == "decode" else request.prompt_tokens
        self.waiting[request.request_id] = sequence

    def admit(self, at_s: float, reserved_pages: int) -> Sequence | None:
        """Move the first in line to the running ones, or nobody if it finds no seat or pages.

        `reserved_pages` stay available. A prefill gets the pages of its whole prompt; output pages
        are never reserved. The last token is computed even if its page is cached (something must
        be sampled from).
        """
        sequence = self._first_in_line()
        if sequence is None:
            return None
        needed = sequence.tokens
        hashes, pages = sequence.hashes, pages_for(needed)
        if pages + reserved_pages - len(hashes) > self.cache.available:
            return None  # not even if every hash were a hit
        hits = self.cache.match(hashes, (needed - 1) // PAGE_TOKENS)
        if not self.cache.fits(hashes, hits, pages + reserved_pages):
            return None
        self._seat(sequence, hits, at_s)
        return sequence

    def _first_in_line(self) -> Sequence | None:
        limits = self.limits
        if not self.waiting or len(self.running) >= limits.seqs_max:
            return None
        sequence = next(iter(self.waiting.values()))
        if not sequence.kv_arrives and len(self.prefilling) >= limits.prefills_max:
            return None
        return sequence

    def _seat(self, sequence: Sequence, hits: int, at_s: float) -> None:
        needed = sequence.tokens
        del self.waiting[sequence.request_id]
        self.running[sequence.request_id] = sequence
        self.seats += 1
        sequence.seat = self.seats
        hit_tokens = hits * PAGE_TOKENS
        self.prompt_tokens += needed
        self.hit_tokens += hit_tokens
        self.events.append(Admitted(sequence.request_id, at_s, hit_tokens))
        sequence.published = hits
        # Where the KV arrives, the first decode step computes the last token again.
        sequence.target = needed - 1 if sequence.kv_arrives else needed
        sequence.pages = pages_for(sequence.target)
        self.removed(self.cache.take(sequence.hashes, hits, sequence.pages), at_s)
        if sequence.kv_arrives:
            sequence.computed = needed
            self.publish(sequence, at_s)
            sequence.computed = needed - 1
        else:
            sequence.computed = hit_tokens
            self.prefilling[sequence.request_id] = sequence

    def grow(self, sequence: Sequence, at_s: float) -> None:
        """Give the sequence one more page. The caller has seen that one is available."""
        sequence.pages += 1
        self.removed(self.cache.grow(1), at_s)

    def removed(self, hashes: list[int], at_s: float) -> None:
        """Report evicted pages, if any."""
        if hashes:
            self.events.append(PagesRemoved(at_s, tuple(hashes)))

    def publish(self, sequence: Sequence, at_s: float) -> None:
        """Let others find the full pages whose KV is computed and whose hash is known."""
        first = sequence.published
        full = min(len(sequence.hashes), sequence.computed // PAGE_TOKENS)
        if full <= first:
            return
        hashes = sequence.hashes[first:full]
        stored = self.cache.publish(hashes)
        sequence.published = full
        if stored:
            # A page never outlives the one before it, so the new ones are the last ones here.
            before = full - len(stored)
            parent = sequence.hashes[before - 1] if before else 0
            self.events.append(PagesStored(at_s, tuple(stored), parent))

    def prefilled(self, sequence: Sequence, at_s: float) -> bool:
        """The prompt is computed; whether a token comes out (a prefill is pinned instead)."""
        del self.prefilling[sequence.request_id]
        if sequence.request.kind == "prefill":
            del self.running[sequence.request_id]
            sequence.life += 1
            self.pinned[sequence.request_id] = sequence
            return False
        sequence.emitted += 1
        return True

    def report_prefilled(self, sequence: Sequence, at_s: float) -> None:
        """Say what `prefilled` did: the first token (not of a recomputed one), or the end."""
        if sequence.request.kind == "prefill":
            self.events.append(PrefillFinished(sequence.request_id, at_s))
        elif sequence.emitted == 1:
            self.events.append(FirstToken(sequence.request_id, at_s))

    def finish(self, sequence: Sequence, at_s: float) -> None:
        """The sequence has all its tokens."""
        self.discard(sequence, at_s)
        self.events.append(Finished(sequence.request_id, at_s, sequence.emitted))

    def requeue(self, sequence: Sequence, at_s: float) -> None:
        """Preempt: free everything, put it first in line; what came out stays out."""
        self.discard(sequence, at_s)
        self.preemptions += 1
        sequence.target = sequence.tokens
        sequence.computed = 0
        self.waiting[sequence.request_id] = sequence
        self.waiting.move_to_end(sequence.request_id, last=False)
        self.events.append(Preempted(sequence.request_id, at_s))

    def discard(self, sequence: Sequence, at_s: float) -> None:
        """Take the sequence out of wherever it is and free what it holds."""
        for place in (self.waiting, self.running, self.prefilling, self.pinned):
            place.pop(sequence.request_id, None)
        self.publish(sequence, at_s)
        hashes = sequence.hashes[: sequence.published]
        self.cache.release(hashes, sequence.pages - sequence.published)
        sequence.pages = sequence.published = 0
        sequence.life += 1

    def newest(self) -> Sequence:
        """The one to preempt: last admitted."""
        return next(reversed(self.running.values()))

    def unfinished_prompts(self) -> Iterator[Sequence]:
        """Every sequence with tokens still to be prefilled, those in progress first."""
        yield from self.prefilling.values()
        yield from self.waiting.values()
