"""A job as vLLM's sequences: what each choice is told, and whether it is complete already. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from components.worker.continuing import (
    Finish,
    emitted_of,
    end_of,
    is_stop_id,
    prompt_to_hand_over,
    salt_of,
    seed_of,
)
from components.worker.engine import Job
from components.worker.vllm.backend import (
    Delta,
    KvParams,
    Output,
    Parser,
    Reading,
    SequenceTask,
    Text,
)
from schemas.body import SamplingParameters

#: The one token that a prefill costs in vLLM; nobody sees it.
PREFILL: Final = SamplingParameters(max_tokens=1, temperature=0.0, ignore_eos=True)


@dataclass(eq=False, slots=True)
class Choice:
    """One sequence. ``index`` is that of its next id, over all attempts."""

    number: int
    task: SequenceTask
    text: Text | None
    index: int
    parser: Parser | None = None
    started: bool = False
    ended: bool = False


@dataclass(eq=False, slots=True)
class Running:
    """A job inside the engine. ``siblings`` wait until the first choice has its KV."""

    job: Job
    choices: dict[int, Choice] = field(default_factory=dict)
    siblings: list[Choice] = field(default_factory=list)
    held_pages: int = 0
    #: Its KV has not arrived yet: no step moves it on.
    parked: bool = False

    @property
    def sequences(self) -> int:
        return len(self.choices) + len(self.siblings)


def prefill(job: Job, name: str, kv: KvParams) -> Choice:
    """The sequence that computes what is handed over."""
    prompt = prompt_to_hand_over(job)
    task = SequenceTask(name, prompt, PREFILL, 1, 0, cache_salt=salt_of(job), kv=kv)
    return Choice(0, task, None, 0)


def begin(
    job: Job, number: int, name: str, reading: Reading, room: int, end_ids: Sequence[int]
) -> tuple[Choice, Finish | None]:
    """A choice as it stands after what it has emitted, and its end if those ids have reached it.

    ``room`` is what the context leaves for output; the first of ``end_ids`` is the tokenizer's own.
    """
    sampling, ids = job.sampling, emitted_of(job, number)
    text, parser = reading.text(), reading.parser(number)
    stop = None
    for place, token_id in enumerate(ids):
        is_stop = is_stop_id(sampling, token_id, place + 1, end_ids)
        stop = text.take(token_id, is_stop=is_stop) or stop
        if parser is not None:
            parser.take((token_id,), text.read(), finished=False)  # it was said
    text.read()  # so was this
    tokens_max = min(sampling.max_tokens, room)
    task = SequenceTask(
        name,
        [*job.prompt, *ids],
        sampling,
        max_tokens=tokens_max - len(ids),
        min_tokens=max(0, sampling.min_tokens - len(ids)),
        seed=seed_of(sampling.seed, number, len(ids)),
        emitted=ids,
        constraint=reading.constraint,
        cache_salt=salt_of(job),
    )
    choice = Choice(number, task, text, len(ids), parser)
    if stop is not None:
        return choice, _end(parser, ("stop", stop))
    return choice, _end(parser, end_of(sampling, ids, tokens_max, end_ids))


@dataclass(frozen=True, slots=True)
class Step:
    """What an output adds to a choice. ``is_cut``: vLLM does not know that this was the end.

    With ``deltas`` (also an empty list) the text is raw.
    """

    ids: list[int]
    text: str
    deltas: list[Delta] | None
    finish: Finish | None
    is_cut: bool


def step_of(choice: Choice, output: Output) -> Step:
    """Reads an output. Parsers read id by id, so that how vLLM bundles ids changes nothing."""
    text, parser = choice.text, choice.parser
    assert text is not None
    finish, ids = finish_of(output), list(output.token_ids)
    pieces: list[str] = []
    deltas: list[Delta] | None = None if parser is None else []
    for place, token_id in enumerate(ids):
        is_last = place + 1 == len(ids)
        stop = text.take(token_id, is_stop=is_last and finish is not None and finish[0] == "stop")
        if stop is not None:
            finish, ids = ("stop", stop), ids[: place + 1]
        ends = stop is not None or (is_last and finish is not None)
        if parser is not None and deltas is not None:
            pieces.append(text.read(finished=ends))
            deltas += parser.take((token_id,), pieces[-1], finished=ends)
        if stop is not None:
            break
    pieces.append(text.read(finished=finish is not None))
    if parser is not None and deltas is not None and finish is not None and not ids:
        deltas += parser.take((), pieces[-1], finished=True)
    is_cut = finish is not None and output.finish is None
    return Step(ids, "".join(pieces), deltas, _end(parser, finish), is_cut)


def _end(parser: Parser | None, finish: Finish | None) -> Finish | None:
    if finish is not None and finish[0] == "stop" and parser is not None and parser.has_called:
        return "tool_calls", finish[1]
    return finish


def finish_of(output: Output) -> Finish | None:
    """OpenAI's reason, and which id it was."""
    if output.finish is None:
        return None
    if output.finish == "length":
        return "length", None
    return "stop", output.stop_token_id
