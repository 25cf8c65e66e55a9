"""What is said of an engine's state, and when. Pure: steps and time in, states out.

How to think about it. A step is the only thing that changes what is known, so the last step's
figures are true until the next one, however long it takes. What is due for being said is said at
most every ``interval_s``; when nothing was said for ``HEARTBEAT_S``, the last figures are repeated.
Nothing is ever said of an engine that its last step did not say: one in a long step is not idle.
One that has work and made no step for ``STUCK_S`` is halted or hangs: of it nothing is said any
more, so that whoever reads takes its state for old instead of true.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

#: Steps that the means are over.
HISTORY: Final = 10
HEARTBEAT_S: Final = 2.0
#: Longer than any step, a first one that compiles included.
STUCK_S: Final = 120.0
#: Scheduled tokens per step: below the first an engine is after latency, above the second after
#: throughput (ELRAR's figures).
LATENCY_BELOW: Final = 256
THROUGHPUT_ABOVE: Final = 1024
#: Weight of the newest prompt in the mean length of prompts.
NEWEST: Final = 0.1

Mode = Literal["latency_optimized", "balanced", "throughput_optimized"]


@dataclass(frozen=True, slots=True)
class Step:
    """What one step says: sequences, tokens scheduled in it, and 0 to 1 of the KV cache.

    ``prompts`` are lengths of prompts that had their first token in it, in tokens.
    """

    at_s: float
    running: int
    waiting: int
    tokens: int
    kv_usage: float
    prompts: tuple[int, ...] = ()


class EngineState:
    """One engine. ``kv_blocks`` -1: not known.

    ``repeats`` False: whoever tells of steps does not see all of them, so figures may be outdated
    when the next ones are still to come, and none are repeated.
    """

    def __init__(
        self,
        engine_id: str,
        interval_s: float,
        kv_blocks: int,
        seqs_max: int,
        *,
        repeats: bool = True,
    ) -> None:
        self._repeats = repeats
        self._engine_id = engine_id
        self._interval_s = interval_s
        self._kv_blocks = kv_blocks
        self._seqs_max = seqs_max
        self._last = Step(0.0, 0, 0, 0, 0.0)
        self._tokens: deque[int] = deque(maxlen=HISTORY)
        self._step_s: deque[float] = deque(maxlen=HISTORY)
        self._prompt_tokens = 0.0
        self._said_s = float("-inf")
        self._is_due = True

    def on_step(self, step: Step) -> None:
        """A step has ended."""
        if self._last.running:  # else it stood still before: no step took that long
            self._step_s.append(max(0.0, step.at_s - self._last.at_s))
        if step.tokens:
            self._tokens.append(step.tokens)
        self._learn(step.prompts)
        self._last = step
        self._is_due = True

    def _learn(self, prompts: Iterable[int]) -> None:
        for tokens in prompts:
            mean = self._prompt_tokens
            self._prompt_tokens = mean + NEWEST * (tokens - mean) if mean else float(tokens)

    def due(self, now_s: float) -> bool:
        """Whether something is to be said now; then ``say`` is called."""
        since_s = now_s - self._said_s
        if self._is_due:
            return since_s >= self._interval_s
        return self._repeats and since_s >= HEARTBEAT_S and not self._is_stuck(now_s)

    def _is_stuck(self, now_s: float) -> bool:
        last = self._last
        return (last.running > 0 or last.waiting > 0) and now_s - last.at_s >= STUCK_S

    def say(self, now_s: float, now_ms: int) -> dict[str, Any]:
        """The eight fields. Pending tokens are those of the requests that wait, by mean length."""
        self._said_s, self._is_due = now_s, False
        last, blocks, step_s = self._last, self._kv_blocks, _mean(self._step_s)
        free = -1 if blocks < 0 else round(blocks * (1.0 - min(1.0, max(0.0, last.kv_usage))))
        return {
            "engine_id": self._engine_id,
            "timestamp_ms": now_ms,
            "latency_pred_ms": step_s * 1e3,
            "scheduling_mode": self._mode(),
            "pending_tokens_total": round(last.waiting * max(1.0, self._prompt_tokens)),
            "kv_cache_free_blocks": free,
            "kv_cache_total_blocks": blocks,
            "engine_capacity": self._seqs_max / step_s if step_s else 0.0,
        }

    def _mode(self) -> Mode:
        mean = _mean(self._tokens)
        if not self._tokens or LATENCY_BELOW <= mean <= THROUGHPUT_ABOVE:
            return "balanced"
        return "latency_optimized" if mean < LATENCY_BELOW else "throughput_optimized"


def _mean(values: deque[int] | deque[float]) -> float:
    return sum(values) / len(values) if values else 0.0
