"""The engine model again, as slow and plain as can be: every step, every sequence, every page.

It knows nothing of runs, sums, phases or closed forms, and shares no code with the model but the
step-time formula. Both must tell the same story of any sequence of calls.
"""

from dataclasses import dataclass, field
from math import ceil, inf

from components.domain.engine_model import (
    Admitted,
    EngineLimits,
    Finished,
    FirstToken,
    ModelEvent,
    ModelRequest,
    PagesRemoved,
    PagesStored,
    Preempted,
    PrefillFinished,
    StepEnded,
)
from components.domain.profiles import StepTimeProfile

PAGE = 16
Call = tuple[float, str, ModelRequest | str]  # when, what, of whom


@dataclass(eq=False)
class Job:
    request: ModelRequest
    place: str = "waiting"  # then prefilling, decoding, pinned, gone
    computed: int = 0
    emitted: int = 0
    preempted: bool = False
    pages: list[int | None] = field(default_factory=list)  # the hash once it is known to others

    @property
    def id(self) -> str:
        return self.request.request_id

    @property
    def needed(self) -> int:
        return self.request.prompt_tokens + self.emitted


class ReferenceEngine:
    def __init__(self, profile: StepTimeProfile, limits: EngineLimits, speed: float) -> None:
        assert limits.kv_pages
        self.s_per_ms = 1e-3 / speed
        self.profile, self.limits, self.pages_total = profile, limits, limits.kv_pages
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.decoding: list[Job] = []
        self.pinned: list[Job] = []
        self.free_hashes: list[int] = []  # oldest first
        self.step: tuple[float, float, list[tuple[Job, int]], list[Job]] | None = None
        self.steps = 0
        self.events: list[ModelEvent] = []

    def run(self, calls: list[Call]) -> list[ModelEvent]:
        for at_s, what, whom in calls:
            self.settle(at_s)
            if isinstance(whom, ModelRequest):
                change = self.acceptable(whom)
            else:
                change = self.find(whom) is not None
                if what == "release":
                    change = self.find(whom) in self.pinned
            if not change:
                continue
            if self.step and self.step[0] == at_s:
                for job in self.step[3]:
                    job.pages.pop()
                self.step = None
            if isinstance(whom, ModelRequest):
                self.waiting.append(Job(whom))
            else:
                self.forget(self.find(whom))
            if self.step is None:
                self.begin(at_s)
        self.settle(inf)
        return self.events

    def acceptable(self, request: ModelRequest) -> bool:
        tokens = request.prompt_tokens
        if request.kind != "prefill":
            tokens += request.output_tokens - 1
        return (
            self.find(request.request_id) is None
            and ceil(tokens / PAGE) <= self.pages_total
            and len(self.waiting) < self.limits.waiting_max
        )

    def find(self, request_id: str) -> Job | None:
        everybody = [*self.waiting, *self.running, *self.pinned]
        return next((job for job in everybody if job.id == request_id), None)

    def settle(self, now_s: float) -> None:
        while self.step and self.step[1] <= now_s:
            at_s = self.step[1]
            self.end(at_s)
            self.begin(at_s)

    # Pages

    def held(self) -> int:
        jobs = [*self.running, *self.pinned]
        shared = {page for job in jobs for page in job.pages if page is not None}
        return len(shared) + sum(job.pages.count(None) for job in jobs)

    def shared(self, page: int) -> bool:
        return any(page in job.pages for job in [*self.running, *self.pinned])

    def evict(self, at_s: float) -> None:
        removed = []
        while self.held() + len(self.free_hashes) > self.pages_total:
            removed.append(self.free_hashes.pop(0))
        if removed:
            self.events.append(PagesRemoved(at_s, tuple(removed)))

    def publish(self, job: Job, at_s: float) -> None:
        stored: list[int] = []
        parent = 0
        for place, page in enumerate(job.request.page_hashes):
            if (place + 1) * PAGE > job.computed or job.pages[place] is not None:
                continue
            if page in self.free_hashes:
                self.free_hashes.remove(page)
            elif not self.shared(page):
                if not stored:
                    parent = job.request.page_hashes[place - 1] if place else 0
                stored.append(page)
            job.pages[place] = page
        if stored:
            self.events.append(PagesStored(at_s, tuple(stored), parent))

    def let_go(self, job: Job) -> None:
        pages, job.pages = job.pages, []
        for page in reversed(pages):
            if page is not None and not self.shared(page):
                self.free_hashes.append(page)

    def forget(self, job: Job | None) -> None:
        assert job is not None
        self.let_go(job)
        job.place = "gone"
        for place in (self.waiting, self.running, self.decoding, self.pinned):
            if job in place:
                place.remove(job)

    # A step begins

    def begin(self, at_s: float) -> None:
        self.preempt(at_s)
        budget = self.limits.step_tokens_max - len(self.decoding)
        chunks = []
        for job in [j for j in self.running if j.place == "prefilling"]:
            if budget:
                chunks.append((job, min(budget, job.needed - job.computed)))
                budget -= chunks[-1][1]
        while budget and (new := self.admit(at_s)):
            if new.place == "decoding":
                budget -= 1
            else:
                chunks.append((new, min(budget, new.needed - new.computed)))
                budget -= chunks[-1][1]
        if not chunks and not self.decoding:
            self.step = None
            return
        growing = [job for job in self.decoding if job.computed == len(job.pages) * PAGE]
        step_ms = self.profile.step_ms(
            prefill_tokens=sum(tokens for _, tokens in chunks),
            prefill_pairs=sum(n * job.computed + n * n / 2 for job, n in chunks),
            decoding=len(self.decoding),
            context_tokens=sum(job.computed + 1 for job in self.decoding),
        )
        for job in growing:
            job.pages.append(None)
        self.evict(at_s)
        self.step = (at_s, at_s + step_ms * self.s_per_ms, chunks, growing)

    def preempt(self, at_s: float) -> None:
        while self.held() + self.growth() > self.pages_total:
            job = self.running[-1]
            self.forget(job)
            job.place, job.computed, job.preempted = "waiting", 0, True
            self.waiting.insert(0, job)
            self.events.append(Preempted(job.id, at_s))

    def growth(self) -> int:
        return sum(job.computed == len(job.pages) * PAGE for job in self.decoding)

    def admit(self, at_s: float) -> Job | None:
        if not self.waiting or len(self.running) >= self.limits.seqs_max:
            return None
        job = self.waiting[0]
        arrives = job.request.kind == "decode" and not job.preempted
        prefilling = sum(j.place == "prefilling" for j in self.running)
        if not arrives and prefilling >= self.limits.prefills_max:
            return None
        hits: list[int | None] = []
        for page in job.request.page_hashes[: (job.needed - 1) // PAGE]:
            if page not in self.free_hashes and not self.shared(page):
                break
            hits.append(page)
        new = [page for page in hits if page in self.free_hashes]
        wanted = len(new) + ceil(job.needed / PAGE) - len(hits)
        if self.held() + self.growth() + wanted > self.pages_total:
            return None
        self.waiting.pop(0)
        self.running.append(job)
        self.free_hashes = [page for page in self.free_hashes if page not in hits]
        job.place = "decoding" if arrives else "prefilling"
        job.computed = job.needed if arrives else len(hits) * PAGE
        pages = ceil((job.needed - 1 if arrives else job.needed) / PAGE)
        job.pages = hits + [None] * (pages - len(hits))
        self.events.append(Admitted(job.id, at_s, len(hits) * PAGE))
        self.evict(at_s)
        if arrives:
            self.decoding.append(job)
            self.publish(job, at_s)
            job.computed -= 1
        return job

    # A step ends

    def end(self, at_s: float) -> None:
        assert self.step
        prefilled = []
        emitted = [job for job in self.decoding if job.place == "decoding"]
        for job in emitted:
            job.computed += 1
            job.emitted += 1
        for job, tokens in self.step[2]:
            if job.place == "prefilling":
                job.computed += tokens
                self.publish(job, at_s)
                if job.computed == job.needed:
                    prefilled.append(job)
        firsts = [job for job in prefilled if job.request.kind != "prefill"]
        for job in firsts:
            job.emitted += 1
        self.steps += 1
        ids = tuple(job.id for job in (*emitted, *firsts))
        self.events.append(StepEnded(at_s, self.steps, 1, ids))
        self.report(emitted, prefilled, at_s)

    def report(self, emitted: list[Job], prefilled: list[Job], at_s: float) -> None:
        for job in emitted:
            if job.emitted == 1:
                self.events.append(FirstToken(job.id, at_s))
        for job in prefilled:
            if job.request.kind == "prefill":
                job.place = "pinned"
                self.running.remove(job)
                self.pinned.append(job)
                self.events.append(PrefillFinished(job.id, at_s))
            else:
                job.place = "decoding"
                if job.emitted == 1:
                    self.events.append(FirstToken(job.id, at_s))
        joining = [job for job in prefilled if job.place == "decoding"]
        for job in (*emitted, *joining):
            if job.emitted == job.request.output_tokens:
                self.forget(job)
                self.events.append(Finished(job.id, at_s, job.emitted))
            elif job in joining:
                self.decoding.append(job)
