"""What a request costs at an engine, by what the engine has learnt of its own steps. Pure.

A step takes, in ms, ``base + per_token * tokens + per_seq * running + per_context_token * context``
(``schemas.engine.StepTimeFit``). Who computes a prompt is judged by the time to its first token
behind what is queued there, who only writes by one step with one sequence more, who does both by
the sum.
"""

from math import ceil
from typing import Final

from schemas.engine import EngineLoadReported, StepTimeFit

PAGE_TOKENS: Final = 16
#: Prompt tokens that one step takes in: the default of engines with chunked prefill.
CHUNK_TOKENS: Final = 2048


def step_ms(fit: StepTimeFit, *, tokens: int, running: int, context: int) -> float:
    """What such a step takes by this fit, in ms."""
    return (
        fit.base_ms
        + fit.per_token_ms * tokens
        + fit.per_seq_ms * running
        + fit.per_context_token_ms * context
    )


def first_token_ms(
    report: EngineLoadReported, *, running: int, queued_tokens: int, tokens: int
) -> float | None:
    """Until a prompt of ``tokens`` has its first token, behind ``queued_tokens`` of others.

    None while the engine has not learnt what a step costs.
    """
    fit = report.step_fit
    if fit is None:
        return None
    work = queued_tokens + tokens
    steps = max(1, ceil(work / CHUNK_TOKENS))
    # Each step also moves the sequences that run by a token.
    shared = step_ms(fit, tokens=running, running=running, context=_context(report))
    return round(steps * shared + fit.per_token_ms * work, 3)


def next_token_ms(report: EngineLoadReported, *, running: int, tokens: int) -> float | None:
    """One step with a sequence of ``tokens`` more than the ``running`` ones; None as above."""
    fit = report.step_fit
    if fit is None:
        return None
    context = _context(report) + tokens
    return round(step_ms(fit, tokens=running + 1, running=running + 1, context=context), 3)


def _context(report: EngineLoadReported) -> int:
    return report.kv_pages_used * PAGE_TOKENS
