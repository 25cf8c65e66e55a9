"""What a gateway needs of a model, as the running vLLM has it."""

import zlib
from typing import Any, Final

from tokenizers import Tokenizer

from schemas.fleet import Feature, ModelCard

#: vLLM's logits processors that speculative decoding leaves out.
_UNLESS_SPECULATIVE: Final[tuple[Feature, ...]] = ("logit_bias", "min_p")


def card_of(llm: Any, name: str, created_s: int, parses: tuple[Feature, ...] = ()) -> ModelCard:
    """The card of what an ``AsyncLLM`` serves. A tokenizer of another kind is left out.

    The tokenizer's own end of text comes first: templates call it ``eos_token``. ``parses`` are the
    features that come with parsers.
    """
    tokenizer = llm.get_tokenizer()
    return ModelCard(
        model=name,
        created_s=created_s,
        context_tokens_max=llm.model_config.max_model_len,
        tokenizer_json=tokenizer_json(tokenizer),
        chat_template=chat_template(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_ids=end_ids(tokenizer, llm.model_config.try_get_generation_config()),
        features=(
            "structured_outputs",
            "prompt_logprobs",
            *(() if llm.vllm_config.speculative_config else _UNLESS_SPECULATIVE),
            *parses,
        ),
    )


def tokenizer_json(tokenizer: Any) -> bytes:
    """``tokenizer.json`` as it is in use, compressed, without truncation or padding."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return b""
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return zlib.compress(copy.to_str().encode(), 9)


def chat_template(tokenizer: Any) -> str:
    """The model's template for plain chats; empty when it has none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):  # several, by purpose
        template = template.get("default")
    return template or ""


def end_ids(tokenizer: Any, generation: dict[str, Any]) -> tuple[int, ...]:
    """Every id that ends a text, the tokenizer's own first."""
    more = generation.get("eos_token_id")
    ids = [tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])]
    return tuple(dict.fromkeys(i for i in ids if i is not None))
