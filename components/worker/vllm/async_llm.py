"""vLLM's ``AsyncLLM`` behind the ``Backend`` protocol.

Written against vLLM 0.32. This is the only file that talks to ``AsyncLLM``, and it imports vllm at
once, which takes seconds: it is itself imported by ``loading.py``, in a thread.
"""

import contextlib
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from multiprocessing import resource_tracker
from typing import Any, Final

from vllm import SamplingParams  # type: ignore[import-not-found]
from vllm.config import KVTransferConfig  # type: ignore[import-not-found]
from vllm.engine.arg_utils import AsyncEngineArgs  # type: ignore[import-not-found]
from vllm.exceptions import VLLMClientError  # type: ignore[import-not-found]
from vllm.inputs import tokens_input  # type: ignore[import-not-found]
from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]
from vllm.v1.engine.async_llm import AsyncLLM  # type: ignore[import-not-found]
from vllm.v1.engine.exceptions import EngineDeadError  # type: ignore[import-not-found]
from vllm.v1.metrics.loggers import StatLoggerBase  # type: ignore[import-not-found]
from vllm.v1.structured_output.utils import (  # type: ignore[import-not-found]
    grammar_is_likely_lark,
)

from components.host.errors import CannotStart
from components.worker.engine import Job
from components.worker.step_fit import StepFit
from components.worker.vllm import grammar_seam
from components.worker.vllm.backend import (
    BadParameter,
    BadSequence,
    Constraint,
    EngineDied,
    Facts,
    LogprobsOfToken,
    Output,
    Reading,
    SequenceTask,
    Stats,
)
from components.worker.vllm.card import card_of
from components.worker.vllm.constraints import Rehearsals, Spec, rehearsal
from components.worker.vllm.kv_events import KvEvents
from components.worker.vllm.loading import VllmModel, in_thread
from components.worker.vllm.page_names import PagesChange
from components.worker.vllm.parsing import Parsing, check_names, params_of
from schemas.body import SamplingParameters
from schemas.engine import StepTimeFit

#: What vLLM's processes may take to end by themselves before they are killed.
SHUTDOWN_S: Final = 2.0
#: Weight of the newest step in the mean step time.
NEWEST: Final = 0.1
#: Impossible tokens have a logprob of minus infinity, which JSON does not know; OpenAI's floor.
LOGPROB_MIN: Final = -9999.0
#: OpenAI's bounds of a bias.
BIAS_MAX: Final = 100.0
#: Kinds that every compiler takes in its stride.
UNREHEARSED: Final = frozenset({"choice", "json_object"})


class AsyncLLMBackend:
    """See the top of the file. Raises ``CannotStart``."""

    def __init__(self, model: VllmModel) -> None:
        check_names(model.tool_parser, model.reasoning_parser)
        # Ctrl-C in a terminal reaches every process there is, and vLLM's would drop what they run.
        # This thread's mask becomes theirs; they end when they are told. (The tracker, when it is
        # started, would take the mask away.)
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self._meter = _Meter()
        self._events = KvEvents() if model.kv_events else None
        # Details of each step come with its statistics; nobody logs them without vLLM's loggers.
        config = {
            "disable_log_stats": True,
            "enable_logging_iteration_details": True,
            **model.engine_args,
            "model": model.source,
        }
        if model.reasoning_parser:  # then constraints begin where the reasoning ends
            config["reasoning_parser"] = model.reasoning_parser
        try:
            if model.kv_transfer:
                config["kv_transfer_config"] = KVTransferConfig(**model.kv_transfer)
            if self._events is not None:
                config["kv_events_config"] = self._events.config()
            self._llm: Any = AsyncLLM.from_engine_args(
                AsyncEngineArgs(**config), stat_loggers=[self._logger]
            )
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            self._close_events()
            raise CannotStart(f"vLLM cannot load {model.source}: {error}") from error
        self._rehearsals = Rehearsals(self._tokens, rehearsal(model.grammar_cpu_s))
        try:
            self._parsing = Parsing(
                self._llm,
                model.tool_parser,
                model.reasoning_parser,
                model.on_odd_output,
                model.tool_strict_level,
            )
        except CannotStart:
            self.stop()
            raise
        self.facts = _facts(self._llm, model, self._parsing)
        self._meter.kv_tokens = self.facts.blocks * self.facts.block_tokens

    async def attach(self) -> None:
        # Asked for once, so that what is submitted later is known to vLLM within its first turn.
        _ = await self._llm.get_supported_tasks()
        self._llm._run_output_handler()  # noqa: SLF001  (else an idle engine's death goes unseen)

    def stop(self) -> None:
        llm, self._llm = self._llm, None
        if llm is None:
            return
        self._rehearsals.stop()
        if (listener := llm.output_handler) is not None:  # else it tells of a death
            listener.get_loop().call_soon_threadsafe(listener.cancel)
        llm.shutdown(timeout=SHUTDOWN_S)
        self._close_events()

    def _close_events(self) -> None:
        if self._events is not None:
            self._events.close()

    @property
    def is_dead(self) -> bool:
        return self._llm is not None and bool(self._llm.errored)

    # What it does

    @property
    def step_fit(self) -> StepTimeFit | None:
        return self._meter.fit.fit()

    @property
    def stats(self) -> Stats:
        return self._meter.stats

    def _logger(self, vllm_config: Any, engine_index: int = 0) -> "_StepLogger":
        return _StepLogger(self._meter)

    def reading(self, job: Job) -> Reading:
        return self._parsing.reading(job)

    async def admit(self, sequence: SequenceTask) -> None:
        constraint = sequence.constraint
        assert constraint is not None
        if sequence.emitted and not grammar_seam.is_installed():
            raise BadSequence("this vLLM cannot go on with a constraint")
        await in_thread(lambda: self._verify(sequence, constraint))
        backend = self._llm.vllm_config.structured_outputs_config.backend
        if constraint.kind not in UNREHEARSED and backend in {"auto", "xgrammar"}:
            await self._rehearsals.check(constraint, _spec(constraint))

    def _verify(self, sequence: SequenceTask, constraint: Constraint) -> None:
        """What vLLM is to say of it, milliseconds before it is told to run it."""
        config = self._llm.vllm_config
        try:
            sampling_params(sequence).verify(
                config.model_config,
                config.speculative_config,
                config.structured_outputs_config,
                self._llm.get_tokenizer(),
            )
        except BadParameter:
            raise
        except Exception as error:  # its validators raise whatever their parsers do
            raise BadParameter(_param(error) or constraint.param, str(error)) from error

    def _tokens(self) -> str:
        import xgrammar  # type: ignore[import-not-found]  # noqa: PLC0415

        tokens = xgrammar.TokenizerInfo.from_huggingface(
            self._llm.get_tokenizer(), vocab_size=self._llm.model_config.get_vocab_size()
        )
        text: str = tokens.serialize_json()
        return text

    async def generate(self, sequence: SequenceTask) -> AsyncIterator[Output]:
        constraint = sequence.constraint
        try:
            params = sampling_params(sequence)
            outputs = self._llm.generate(
                tokens_input(list(sequence.prompt), cache_salt=sequence.cache_salt),
                params,
                sequence.name,
                reasoning_ended=None if constraint is None else constraint.reasoning_ended,
            )
            async for out in outputs:
                yield _output(out, sequence)
        except EngineDeadError as error:
            raise EngineDied(str(error)) from error
        except (VLLMClientError, ValueError) as error:
            if (param := _param(error)) is not None:
                raise BadParameter(param, str(error)) from error
            raise BadSequence(str(error)) from error

    async def abort(self, names: Sequence[str]) -> None:
        with contextlib.suppress(EngineDeadError):
            await self._llm.abort(names)

    async def page_changes(self) -> AsyncIterator[PagesChange]:
        if self._events is not None:
            async for change in self._events.changes():
                yield change

    # Control

    async def pause(self, *, keep: bool) -> None:
        mode = "keep" if keep else "abort"
        await self._llm.pause_generation(mode=mode, clear_cache=not keep)

    async def resume(self) -> None:
        await self._llm.resume_generation()

    async def sleep(self, level: int) -> None:
        await self._llm.sleep(level=level)

    async def wake(self) -> None:
        await self._llm.wake_up()

    async def reset_prefix_cache(self) -> bool:
        return bool(await self._llm.reset_prefix_cache())


def _facts(llm: Any, model: VllmModel, parsing: Parsing) -> Facts:
    config = llm.vllm_config
    shape, cache, scheduler = config.model_config, config.cache_config, config.scheduler_config
    width = 1 if "fp8" in cache.cache_dtype else shape.dtype.itemsize
    heads, layers = shape.get_total_num_kv_heads(), shape.get_total_num_hidden_layers()
    return Facts(
        card=card_of(llm, model.name, model.created_s, parsing.features),
        vocabulary_size=shape.get_vocab_size(),
        context_tokens_max=shape.max_model_len,
        seqs_max=scheduler.max_num_seqs,
        step_tokens_max=scheduler.max_num_batched_tokens,
        blocks=cache.num_gpu_blocks - 1,  # one is vLLM's own
        block_tokens=cache.block_size,
        kv_bytes_per_token=2 * layers * heads * shape.get_head_size() * width,
        has_connector=config.kv_transfer_config is not None,
    )


def sampling_params(sequence: SequenceTask) -> Any:
    """What vLLM is told. Text and stop texts are not its business (``text.py``).

    What a continuation has emitted is part of the prompt and would escape the penalties on output,
    so it is fined by a bias. With a frequency penalty that is exact; a presence penalty is paid
    twice by a token that stands both before and behind the seam.
    """
    sampling, constraint = sequence.sampling, sequence.constraint
    wants_texts = sampling.logprobs is not None or sampling.prompt_logprobs is not None
    extra: dict[str, Any] = {}
    if sequence.kv is not None:
        extra["kv_transfer_params"] = dict(sequence.kv)
    if constraint is not None and sequence.emitted:
        extra[grammar_seam.EMITTED] = len(sequence.emitted)
    return SamplingParams(
        max_tokens=sequence.max_tokens,
        min_tokens=sequence.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=max(0, sampling.top_k),
        min_p=sampling.min_p,
        seed=sequence.seed,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs,
        # Those of a continuation have been said.
        prompt_logprobs=None if sequence.emitted else sampling.prompt_logprobs,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=_bias(sequence),
        structured_outputs=None if constraint is None else params_of(constraint),
        # vLLM writes the texts of logprobs only when it detokenises.
        detokenize=wants_texts,
        output_kind=RequestOutputKind.DELTA,
        extra_args=extra or None,
        skip_clone=True,
    )


def _bias(sequence: SequenceTask) -> dict[int, float] | None:
    """The request's own, and what stands for the penalties on what was emitted."""
    sampling = sequence.sampling
    bias = {i: max(-BIAS_MAX, min(BIAS_MAX, by)) for i, by in sampling.logit_bias}
    presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
    if sequence.emitted and (presence or frequency):
        for i, times in Counter(sequence.emitted).items():
            bias[i] = bias.get(i, 0.0) - presence - frequency * times
    return bias or None


def _spec(constraint: Constraint) -> Spec:
    kind = constraint.kind
    if kind == "grammar":
        kind = "lark" if grammar_is_likely_lark(constraint.value) else "ebnf"
    return Spec(kind, constraint.value)


def _param(error: Exception) -> str | None:
    """Which of our parameters vLLM blames, if it says so."""
    param = getattr(error, "parameter", None)
    return param if param in SamplingParameters.model_fields else None


def _output(out: Any, sequence: SequenceTask) -> Output:
    [choice] = out.outputs
    logprobs = sequence.sampling.logprobs
    rows = None
    if logprobs is not None and choice.logprobs is not None:
        rows = [
            _row(row, i, logprobs) for row, i in zip(choice.logprobs, choice.token_ids, strict=True)
        ]
    stop = choice.stop_reason
    return Output(
        token_ids=choice.token_ids,
        logprobs=rows,
        finish=choice.finish_reason,
        stop_token_id=stop if isinstance(stop, int) else None,
        cached_tokens=out.num_cached_tokens or 0,
        kv=out.kv_transfer_params,
        prompt_logprobs=_prompt_rows(out, sequence) if out.prompt_logprobs else None,
    )


def _prompt_rows(out: Any, sequence: SequenceTask) -> list[LogprobsOfToken | None]:
    top = sequence.sampling.prompt_logprobs or 0
    return [
        None if row is None else _row(row, i, top)
        for row, i in zip(out.prompt_logprobs, sequence.prompt, strict=True)
    ]


def _row(row: Mapping[int, Any], token_id: int, top: int) -> LogprobsOfToken:
    """The chosen token, then the ``top`` likeliest ones, likeliest first."""
    ranked = sorted((r.rank, i, r) for i, r in row.items() if r.rank <= top)
    chosen = (token_id, row[token_id])
    return [
        [i, max(LOGPROB_MIN, r.logprob), r.decoded_token or ""]
        for i, r in (chosen, *((i, r) for _, i, r in ranked))
    ]


class _Meter:
    """Sums over vLLM's steps."""

    def __init__(self) -> None:
        self.stats = Stats()
        self.fit = StepFit()
        #: Tokens that the KV cache has room for.
        self.kv_tokens = 0
        self._last_s: float | None = None

    def record(self, scheduler: Any, now_s: float) -> None:
        before = self.stats
        step_ms = before.step_ms
        if self._last_s is not None and before.running:
            took_ms = (now_s - self._last_s) * 1e3
            step_ms = took_ms if not step_ms else step_ms + NEWEST * (took_ms - step_ms)
            self._learn(scheduler, took_ms)
        self._last_s = now_s
        local, external = scheduler.prefix_cache_stats, scheduler.connector_prefix_cache_stats
        self.stats = Stats(
            steps=before.steps + 1,
            running=scheduler.num_running_reqs,
            kv_usage=scheduler.kv_cache_usage,
            step_ms=step_ms,
            prompt_tokens=before.prompt_tokens + (local.queries if local else 0),
            prefix_hit_tokens=before.prefix_hit_tokens + (local.hits if local else 0),
            external_hit_tokens=before.external_hit_tokens + (external.hits if external else 0),
        )

    def _learn(self, scheduler: Any, took_ms: float) -> None:
        """From one step to the next: vLLM's own time of a step leaves out most of it on CPUs."""
        details = scheduler.iteration_details
        if details is None or details.is_dummy:
            return
        self.fit.on_step(
            took_ms,
            tokens=details.num_ctx_tokens + details.num_generation_tokens,
            running=details.num_ctx_requests + details.num_generation_requests,
            context=round(scheduler.kv_cache_usage * self.kv_tokens),
        )


class _StepLogger(StatLoggerBase):  # type: ignore[misc]
    """Called by vLLM after each step. Its base is declared unstable; nothing else is used of it."""

    def __init__(self, meter: _Meter) -> None:
        self._meter = meter

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            self._meter.record(scheduler_stats, time.monotonic())

    def log_engine_initialized(self) -> None:
        pass
