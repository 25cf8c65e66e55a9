"""The text of one choice, by vLLM's own detokeniser and its search for stop texts.

They run here and not inside ``AsyncLLM`` because a continuation must bring them to the state after
what was emitted before: then no text is said twice, none that lagged is lost, and a stop text that
lies across the seam is found.
"""

from collections.abc import Sequence
from typing import Any

from vllm import SamplingParams  # type: ignore[import-not-found]
from vllm.v1.engine import EngineCoreRequest  # type: ignore[import-not-found]
from vllm.v1.engine.detokenizer import IncrementalDetokenizer  # type: ignore[import-not-found]

from schemas.body import SamplingParameters


class TextOfChoice:
    """See ``Text`` in ``backend.py``."""

    def __init__(
        self,
        tokenizer: Any,
        prompt: Sequence[int],
        sampling: SamplingParameters,
        *,
        with_specials: bool = False,
    ) -> None:
        """``with_specials``: special tokens are part of the text, as some parsers want it."""
        params = SamplingParams(
            stop=list(sampling.stop),
            min_tokens=sampling.min_tokens,
            max_tokens=sampling.max_tokens,
            skip_special_tokens=not with_specials,
        )
        request = EngineCoreRequest(
            request_id="",
            prompt_token_ids=list(prompt),
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        self._text = IncrementalDetokenizer.from_new_request(tokenizer, request)

    def take(self, token_id: int, *, is_stop: bool = False) -> str | None:
        stop: str | None = self._text.update([token_id], is_stop)
        return stop

    def read(self, *, finished: bool = False) -> str:
        text: str = self._text.get_next_output_text(finished, delta=True)
        return text
