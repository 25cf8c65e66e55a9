"""What goes into the engine model: requests and limits, and how it refuses them."""

from dataclasses import dataclass
from typing import Literal

from components.domain.pages import PAGE_TOKENS, pages_for

RequestKind = Literal["aggregated", "prefill", "decode"]


class EngineModelError(Exception):
    """The engine model refused a call."""


class WaitingQueueFull(EngineModelError):
    """`waiting_max` requests wait already; try again later or elsewhere."""


class RequestTooLarge(EngineModelError):
    """The request would not fit into the KV cache even if it were alone."""


class DuplicateRequest(EngineModelError):
    """A request of this id is waiting, running or pinned."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request as the model sees it: lengths and page hashes, no text.

    - `aggregated`: prefill, then decode, here.
    - `prefill`: the prompt only; no token comes out and its pages stay pinned until `release`.
    - `decode`: the KV of the prompt is there at submission; this engine samples every token, the
      first one by computing the last prompt token again.

    `output_tokens` is where the model ends by itself (a prefill has none); `finish` ends earlier.
    `page_hashes` name the leading full pages of the prompt; without them nothing is shared.
    """

    request_id: str
    prompt_tokens: int
    output_tokens: int = 0
    page_hashes: tuple[int, ...] = ()
    kind: RequestKind = "aggregated"

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise ValueError("a prompt has at least one token")
        if self.output_tokens < (self.kind != "prefill"):
            raise ValueError(
                f"{self.output_tokens} output tokens for a request of kind {self.kind}"
            )
        if len(self.page_hashes) > self.prompt_tokens // PAGE_TOKENS:
            raise ValueError("more page hashes than full pages in the prompt")

    @property
    def pages_max(self) -> int:
        """Most pages the request can hold: the KV of the last token is never computed."""
        outputs = 0 if self.kind == "prefill" else self.output_tokens - 1
        return pages_for(self.prompt_tokens + outputs)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one engine, under the names vLLM's are known by in the comments.

    `kv_pages` None takes the room that the profile knows. `zero_time_steps_max` bounds one call of
    `advance` when steps take no time (profile `constant` with `itl_ms` 0).
    """

    seqs_max: int = 256  # max_num_seqs
    step_tokens_max: int = 2048  # max_num_batched_tokens
    prefills_max: int = 256  # max_num_partial_prefills, but counting whole prompts too
    kv_pages: int | None = None  # num_gpu_blocks
    waiting_max: int = 4096
    zero_time_steps_max: int = 1

    def __post_init__(self) -> None:
        values = [
            self.seqs_max,
            self.prefills_max,
            self.waiting_max,
            self.zero_time_steps_max,
            1 if self.kv_pages is None else self.kv_pages,
        ]
        if min(values) < 1:
            raise ValueError(f"every limit is at least 1: {self}")
        if self.step_tokens_max < self.seqs_max:
            # Otherwise decodes could take the whole step for ever and no prompt would move.
            raise ValueError("step_tokens_max must be at least seqs_max")
