"""What a step of an engine costs, learnt while it runs. Pure, bounded, microseconds per step.

Least squares with forgetting on

    step ms = base + per_token * tokens + per_seq * running + per_context_token * context

(roofline terms of one batch: launch and weights, compute, per-sequence work, reading the KV). Only
the normal equations are kept, 4 x 4, each step's older weight falling by ``FORGET``; none of the
coefficients is negative, by coordinate descent from the last fit, so what two features that move
together cost may be booked on either, but never against the other. A step far slower than expected
(a collector, a neighbour on the machine) counts as if it were only ``SLOW`` times as slow.
"""

from math import isfinite
from typing import Final

from schemas.engine import StepTimeFit

#: Half of what is known is of the last 350 steps.
FORGET: Final = 0.998
SLOW: Final = 3.0
#: Steps before which nothing is said.
SAMPLES_MIN: Final = 20
SWEEPS: Final = 30
#: Pulls coefficients of which nothing is known towards 0; in squared units of the feature.
_RIDGE: Final = 1e-6
_FEATURES: Final = 4
#: Weight of the newest step in the mean relative error.
_NEWEST: Final = 0.05


class StepFit:
    """One engine's."""

    def __init__(self) -> None:
        self._xx = [[0.0] * _FEATURES for _ in range(_FEATURES)]
        self._xy = [0.0] * _FEATURES
        self._coefficients = [0.0] * _FEATURES
        self._samples = 0
        self._error = 0.0

    def on_step(self, took_ms: float, *, tokens: int, running: int, context: int) -> None:
        """A step has ended that computed ``tokens`` of ``running`` sequences.

        ``context``: tokens in the KV cache that these have. A step of nothing says nothing, nor
        does one of no length: one that is no number would be remembered forever.
        """
        if not tokens or took_ms <= 0.0 or not isfinite(took_ms):
            return
        x = (1.0, float(tokens), float(running), float(context))
        if self._samples >= SAMPLES_MIN:
            took_ms = self._judged(x, took_ms)
        for row in range(_FEATURES):
            self._xy[row] = self._xy[row] * FORGET + x[row] * took_ms
            for column in range(_FEATURES):
                self._xx[row][column] = self._xx[row][column] * FORGET + x[row] * x[column]
        self._samples += 1
        if self._samples == SAMPLES_MIN:
            self._descend()

    def _judged(self, x: tuple[float, ...], took_ms: float) -> float:
        """The step as it counts, after the error of what was expected of it."""
        expected_ms = sum(c * v for c, v in zip(self._coefficients, x, strict=True))
        off = abs(took_ms - expected_ms) / took_ms
        self._error += _NEWEST * (off - self._error)
        return min(took_ms, SLOW * expected_ms) if expected_ms > 0.0 else took_ms

    def fit(self) -> StepTimeFit | None:
        """What was learnt; None before there is anything."""
        if self._samples < SAMPLES_MIN:
            return None
        self._descend()
        base, per_token, per_seq, per_context = self._coefficients
        return StepTimeFit(
            base_ms=base,
            per_token_ms=per_token,
            per_seq_ms=per_seq,
            per_context_token_ms=per_context,
            samples=self._samples,
            error=self._error,
        )

    def _descend(self) -> None:
        """Each coefficient in turn as good as it can be with the others as they are."""
        found = self._coefficients
        for _ in range(SWEEPS):
            for row in range(_FEATURES):
                line = self._xx[row]
                own = line[row] * (1.0 + _RIDGE)
                if own <= 0.0:
                    continue
                rest = sum(line[c] * found[c] for c in range(_FEATURES)) - line[row] * found[row]
                found[row] = max(0.0, (self._xy[row] - rest) / own)
