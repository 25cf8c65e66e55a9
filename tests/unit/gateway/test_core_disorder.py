"""Workers that die, stop, lose and repeat at random: the client's text is always exact."""

import random
from dataclasses import dataclass, field

from components.domain.bodies import decode_body
from components.domain.outcomes import Ask, Send
from components.domain.story import Story
from components.domain.words import vocabulary
from schemas.attempt import CancelAttempt, ResumeStreams
from schemas.body import SamplingParameters
from schemas.frames import Entry
from schemas.request import ScheduleRequest
from tests.unit.gateway.yard import Yard

STEP_S = 0.1
TOKENS = 300


@dataclass
class Job:
    """One attempt at one worker."""

    request_id: str
    attempt: int
    stories: dict[int, Story]
    said: list[Entry] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, int]:
        return self.request_id, self.attempt


class DisorderedFleet:
    """Scheduler and workers around a core; every loss is drawn from one seed."""

    def __init__(self, yard: Yard, seed: int) -> None:
        self.yard = yard
        self.random = random.Random(seed)
        self.jobs: dict[str, dict[tuple[str, int], Job]] = {}
        self.epochs: dict[str, int] = {}
        self.frozen: dict[str, int] = {}
        self.seen = 0
        for name in ("decode-0", "decode-1", "decode-2"):
            self.join(name)

    def join(self, worker: str) -> None:
        self.epochs[worker] = self.epochs.get(worker, 0) + 1
        self.jobs[worker] = {}
        self.frozen.pop(worker, None)
        self.yard.heartbeat("worker", worker, epoch=self.epochs[worker])

    def step(self) -> None:
        """Everything that may happen in a tenth of a second, in random order."""
        self.answer_the_gateway()
        dice = self.random.random()
        alive = [w for w in self.jobs if w not in self.frozen]
        if dice < 0.02 and len(alive) > 1:
            victim = self.random.choice(alive)
            self.jobs[victim] = {}
            self.join(victim)  # killed, and back at once in another life
        elif dice < 0.04 and len(alive) > 1:
            victim = self.random.choice(alive)
            self.frozen[victim] = self.random.randint(5, 40)
            self.yard.peers.pop(victim, None)
        for worker in list(self.frozen):
            self.frozen[worker] -= 1
            if not self.frozen[worker]:
                del self.frozen[worker]
                self.yard.heartbeat("worker", worker, epoch=self.epochs[worker])
        for worker in self.random.sample(sorted(self.jobs), len(self.jobs)):
            if worker not in self.frozen:
                self.engine_step(worker)

    def engine_step(self, worker: str) -> None:
        """Up to three tokens per choice; some entries are lost, some come twice, none in order."""
        entries: list[Entry] = []
        for job in self.jobs[worker].values():
            for choice, story in list(job.stories.items()):
                ids: list[int] = []
                text, finish, index = "", None, story.count
                for _ in range(self.random.randint(0, 3)):
                    if story.finish is None:
                        written = story.next()
                        ids.append(written.token_id)
                        text += written.text
                if story.finish is not None:
                    finish = [*story.finish, 0]
                    del job.stories[choice]
                entry: Entry = (*job.key, choice, index, ids, text, None, finish)
                job.said.append(entry)
                entries.append(entry)
        arrives = [e for e in entries if self.random.random() > 0.15]
        arrives += [e for e in arrives if self.random.random() < 0.1]
        self.random.shuffle(arrives)
        self.yard.frame(worker, *arrives, epoch=self.epochs[worker])

    def answer_the_gateway(self) -> None:
        """Do what the gateway has asked for since the last look."""
        said, self.seen = self.yard.said[self.seen :], len(self.yard.said)
        for outcome in said:
            match outcome:
                case Send(message=ScheduleRequest() as message):
                    self.place(message)
                case Send(message=CancelAttempt() as message, to=(worker,)):
                    if worker not in self.frozen:
                        self.jobs[worker].pop((message.request_id, message.attempt), None)
                case Ask(message=ResumeStreams(), to=(worker,)):
                    self.resume(worker, outcome)
                case _:
                    pass

    def place(self, message: ScheduleRequest) -> None:
        card = message.card
        key = (card.request_id, card.attempt)
        request = self.yard.core.requests.get(card.request_id)
        if request is None or any(key in jobs for jobs in self.jobs.values()):
            return
        alive = [w for w in self.jobs if w not in self.frozen]
        worker = self.random.choice(alive)
        assert message.body is not None
        body = decode_body(message.body)
        stories = {}
        for choice in range(card.choices):
            emitted = body.emitted.get(choice)
            if emitted is None or not emitted.finished:
                ids = emitted.token_ids if emitted else ()
                stories[choice] = Story(body.prompt_token_ids, ids, body.sampling, choice)
        self.jobs[worker][key] = Job(*key, stories)
        if self.random.random() < 0.8:  # else only frames will say who has it
            self.yard.dispatched(request, worker, card.attempt, self.epochs[worker])

    def resume(self, worker: str, ask: Ask) -> None:
        assert isinstance(ask.message, ResumeStreams)
        if worker in self.frozen or self.random.random() < 0.2:
            self.yard.hear(
                self.yard.core.on_resumed(worker, ask.message, None, (), self.yard.now_s)
            )
            return
        entries, unknown = [], []
        for position in ask.message.positions:
            job = self.jobs[worker].get((position.request_id, position.attempt))
            if job is None:
                unknown.append(position)
                continue
            entries += [
                e for e in job.said if e[2] == position.choice and e[3] >= position.next_index
            ]
        self.yard.hear(
            self.yard.core.on_resumed(worker, ask.message, entries, unknown, self.yard.now_s)
        )


def story_of(prompt: tuple[int, ...], sampling: SamplingParameters, choice: int) -> str:
    story = Story(prompt, (), sampling, choice)
    text = ""
    while story.finish is None:
        text += story.next().text
    return text


def run(seed: int) -> Yard:
    """Eight requests of two choices through the disorder; fails when a text is not exact."""
    yard = Yard(interruptions_max=50, repair_s=3.0).fleet("decode-0", "decode-1", "decode-2")
    fleet = DisorderedFleet(yard, seed)
    sampling = SamplingParameters(max_tokens=TOKENS, n=2, ignore_eos=True)
    prompts = {f"req-{n}": tuple(vocabulary().words[n : n + 5]) for n in range(8)}
    requests = {
        name: yard.accept(name, prompt=prompt, choices=2, max_tokens=TOKENS, ignore_eos=True)
        for name, prompt in prompts.items()
    }
    texts = {(name, choice): "" for name in requests for choice in range(2)}
    for _ in range(3000):
        yard.pass_s(STEP_S, STEP_S)
        fleet.step()
        for name, choice in texts:
            piece = requests[name].streams[choice].take()
            texts[name, choice] += piece.text if piece else ""
        if not yard.core.requests:
            break
    assert (yard.core.requests, yard.ends()) == ({}, [])
    assert texts == {key: story_of(prompts[key[0]], sampling, key[1]) for key in texts}
    return yard


def test_whatever_is_lost_repeated_or_dies_every_text_is_exact():
    yards = [run(seed) for seed in range(25)]
    for name in ("interruptions_total", "resumes_wanted_total", "late_tokens_total"):
        assert sum(yard.count(name) for yard in yards) > 50, f"a run without {name} shows nothing"
