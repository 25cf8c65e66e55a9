"""What vLLM loads (entry point ``vllm.stat_logger_plugins``) and calls after each step."""

import logging
import os
import time
from typing import Any, Final

from vllm.v1.metrics.loggers import StatLoggerBase  # type: ignore[import-not-found]

from components.worker.elrar.core import EngineState, Step
from components.worker.elrar.sender import Sender, own_address
from components.worker.elrar.settings import HOST, BadElrar, read

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
                return
            name = settings.engine_id + (f"/{self._index}" if self._index else "")
            blocks = self._config.cache_config.num_gpu_blocks
            seqs_max = self._config.scheduler_config.max_num_seqs
            state = EngineState(
                name, settings.interval_s, -1 if blocks is None else blocks, seqs_max
            )
            self._sender = Sender(settings, state)
        except (BadElrar, OSError) as error:
            log.warning("no ELRAR states are sent: %s", error)

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
        prompt, new, begun = 0, 0, ()
        if iteration_stats is not None:
            prompt, new = iteration_stats.num_prompt_tokens, iteration_stats.num_generation_tokens
            begun = tuple(r.num_prompt_tokens for r in iteration_stats.finished_requests)
        self._sender.on_step(
            Step(
                at_s=time.monotonic(),
                running=scheduler_stats.num_running_reqs,
                waiting=scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs,
                tokens=prompt + new,
                kv_usage=scheduler_stats.kv_cache_usage,
                prompts=begun,
            )
        )
