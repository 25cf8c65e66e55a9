"""An LLM engine in numbers: what it does, when, and how full it is, without a GPU and without text.

How to think about it. The model owns no time. A caller submits requests, asks when to look again
(`next_step_at` to see every token, `next_event_at` to see only what changes), and calls `advance`
with that time; what happened since comes back as events with exact times:

    model = EngineModel(profile_named("llama3-8b/tp1/h100"), EngineLimits())
    model.submit(ModelRequest("a", prompt_tokens=1020, output_tokens=129), now_s=0.0)
    while (at_s := model.next_event_at()) is not None:
        for event in model.advance(at_s): ...

A live engine sleeps until then; a simulation goes there at once. Both see the same events.

    request.py        what goes in, what is refused   events.py         what comes out
    model.py          the calls                       state.py          queue, places, pages
    step_loop.py      steps of a measured profile     constant_loop.py  the `constant` profile
    run.py            steps planned at once           decode_batch.py   decoding in closed form
    page_cache.py     pages and prefix cache

After vLLM V1's scheduler, with these simplifications: a prompt gets all its pages on admission
(vLLM: chunk by chunk), pages become findable when computed, an aborted sequence leaves at once
although the step it was in goes on, and prompt and output lengths alone decide, never content.
"""

from components.domain.engine_model.events import (
    Admitted,
    Finished,
    FirstToken,
    ModelEvent,
    PagesRemoved,
    PagesStored,
    Preempted,
    PrefillFinished,
    StepEnded,
)
from components.domain.engine_model.model import EngineGauges, EngineModel
from components.domain.engine_model.request import (
    DuplicateRequest,
    EngineLimits,
    EngineModelError,
    ModelRequest,
    RequestKind,
    RequestTooLarge,
    WaitingQueueFull,
)
from components.domain.engine_model.run import StepWork

__all__ = [
    "Admitted",
    "DuplicateRequest",
    "EngineGauges",
    "EngineLimits",
    "EngineModel",
    "EngineModelError",
    "Finished",
    "FirstToken",
    "ModelEvent",
    "ModelRequest",
    "PagesRemoved",
    "PagesStored",
    "Preempted",
    "PrefillFinished",
    "RequestKind",
    "RequestTooLarge",
    "StepEnded",
    "StepWork",
    "WaitingQueueFull",
]
