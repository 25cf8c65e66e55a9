"""What vLLM loads (entry point ``vllm.stat_logger_plugins``) and calls after each step.

An error that left here would end vLLM's output loop, and every request with it. So none leaves: the
agent falls silent instead, once and for all, and its engine's state goes stale at the bridge.
"""

import logging
import os
import time
import weakref
from typing import Any, Final

from vllm.v1.metrics.loggers import StatLoggerBase  # type: ignore[import-not-found]

from components.worker.elrar.core import EngineState, Step
from components.worker.elrar.sender import Sender, own_address
from components.worker.elrar.settings import HOST, BadElrar, ElrarSettings, read

log: Final = logging.getLogger("switchyard.elrar")


class ElrarStatLogger(StatLoggerBase):  # type: ignore[misc]
    """One engine's agent. Without ``VLLM_ELRAR_GATEWAY_HOST`` it does nothing."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._config = vllm_config
        self._index = engine_index
        self._sender: Sender | None = None

    def log_engine_initialized(self) -> None:
        """The first state: nothing runs. The size of the cache is known from here on."""
        try:
            settings = read(os.environ, own_address(), os.getpid())
            if settings is None:
                log.debug("no ELRAR states are sent: %s is not set", HOST)
            else:
                self._begin(settings)
        except BadElrar as error:
            log.warning("no ELRAR states are sent: %s", error)
        except Exception as error:  # noqa: BLE001  (see above)
            self._give_up(error)

    def _begin(self, settings: ElrarSettings) -> None:
        config = self._config
        blocks = config.cache_config.num_gpu_blocks
        # Of several API servers each gets some steps' figures only.
        servers = getattr(config.parallel_config, "_api_process_count", 1)
        state = EngineState(
            settings.engine_id + (f"/{self._index}" if self._index else ""),
            settings.interval_s,
            -1 if blocks is None else blocks,
            config.scheduler_config.max_num_seqs,
            repeats=servers == 1,
        )
        self._sender = Sender(settings, state)
        # vLLM never says that an engine is gone; it forgets its loggers.
        weakref.finalize(self, self._sender.end)

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """After each step."""
        if self._sender is None or scheduler_stats is None:
            return
        try:
            self._sender.on_step(_step(scheduler_stats, iteration_stats))
        except Exception as error:  # noqa: BLE001  (see above)
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.warning("no more ELRAR states are sent: %s: %s", type(error).__name__, error)
        if self._sender is not None:
            self._sender.end()
        self._sender = None


def _step(scheduler: Any, iteration: Any) -> Step:
    """``iteration`` is None after a step without a token."""
    tokens = 0
    prompts: tuple[int, ...] = ()
    if iteration is not None:
        tokens = iteration.num_prompt_tokens + iteration.num_generation_tokens
        prompts = _prompts(iteration)
    # Exact where the operator has them counted; above, a prompt in chunks counts at its end.
    if (details := getattr(scheduler, "iteration_details", None)) is not None:
        tokens = details.num_ctx_tokens + details.num_generation_tokens
    return Step(
        at_s=time.monotonic(),
        running=scheduler.num_running_reqs,
        waiting=scheduler.num_waiting_reqs + getattr(scheduler, "num_skipped_waiting_reqs", 0),
        tokens=tokens,
        kv_usage=scheduler.kv_cache_usage,
        prompts=prompts,
    )


def _prompts(iteration: Any) -> tuple[int, ...]:
    """Their sum and number are all that vLLM says."""
    number = len(iteration.time_to_first_tokens_iter)
    if not number or not iteration.num_prompt_tokens:
        return ()
    return (round(iteration.num_prompt_tokens / number),) * number
