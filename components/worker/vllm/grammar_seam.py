"""A constraint goes on where another attempt stopped.

What a continuation has emitted is part of its prompt, and vLLM would begin the grammar anew behind
it. So the emitted ids are fed to the grammar when it has been compiled: in a thread of vLLM's
engine process, before the scheduler may take the sequence. Where reasoning comes first, only what
follows it counts, as vLLM itself would have it.

This replaces a private method of vLLM 0.32. Where that is not as expected nothing is replaced,
``is_installed`` says so, and constrained continuations are refused. The agent's process and vLLM's
load the same plugins, so what holds in one holds in the other.
"""

from collections.abc import Callable
from typing import Any, Final

#: In ``SamplingParams.extra_args``: how many ids at the end of the prompt were output.
EMITTED: Final = "switchyard_emitted"
_MARK: Final = "_switchyard_seam"

#: (vLLM's manager of grammars, a request of its) -> the grammar
Create = Callable[[Any, Any], Any]


class SeamError(ValueError):
    """What was emitted does not satisfy the constraint that is said to have held for it."""


def install() -> None:
    """Do it in this process. Harmless twice."""
    manager = _manager()
    create = getattr(manager, "_create_grammar", None)
    bounds = getattr(manager, "_get_constraint_bounds", None)
    if manager is None or create is None or bounds is None or hasattr(manager, _MARK):
        return
    manager._create_grammar = going_on(create)  # noqa: SLF001  (see the top of the file)
    setattr(manager, _MARK, True)


def is_installed() -> bool:
    """Will a grammar go on where another attempt stopped?"""
    return hasattr(_manager(), _MARK)


def _manager() -> Any:
    try:
        from vllm.v1.structured_output import (  # type: ignore[import-not-found]  # noqa: PLC0415
            StructuredOutputManager,
        )
    except ImportError:
        return None
    return StructuredOutputManager


def going_on(create: Create) -> Create:
    """The same, with the emitted ids behind it. Raises ``SeamError``: that request ends."""

    def create_and_go_on(manager: Any, request: Any) -> Any:
        grammar = create(manager, request)
        count = (request.sampling_params.extra_args or {}).get(EMITTED, 0)
        if count:
            _feed(manager, request, grammar, list(request.prompt_token_ids[-count:]))
        return grammar

    return create_and_go_on


def _feed(manager: Any, request: Any, grammar: Any, emitted: list[int]) -> None:
    bounds_of = manager._get_constraint_bounds  # noqa: SLF001
    bounds = bounds_of(request, emitted, spec_tokens_committed=True)
    if bounds.grammar_start > len(emitted):
        return  # still reasoning
    request.structured_output_request.reasoning_ended = True
    if not grammar.accept_tokens(request.request_id, emitted[bounds.grammar_start :]):
        raise SeamError("the ids before the seam break the constraint")
