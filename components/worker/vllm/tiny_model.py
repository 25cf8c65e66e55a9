"""A model of 164,000 random weights, made here: a real engine runs it and nothing is downloaded.

    switchyard tiny-model DIR

The same files come out every time. The tokenizer knows bytes and nothing else, so every text has
tokens; the weights are random but not tiny, so greedy decoding wanders instead of repeating one id.
Its rows of the head that no token has are zero, so greedy decoding stays within the tokenizer; so
are those of the ends of reasoning, which it writes only when it is made to.

Needs torch, transformers and tokenizers, as they come with vLLM.
"""

from pathlib import Path
from typing import Any, Final

SPECIALS: Final = (
    "<pad>",
    "<bos>",
    "<eos>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<tool_call>",
    "</tool_call>",
)
#: Words of its own for the ends of reasoning; they are text like any other.
THINK: Final = ("<think>", "</think>")
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
CONTEXT_TOKENS_MAX: Final = 2048
#: Specials, then one token per byte: what the model itself writes.
WRITTEN_TOKENS: Final = len(SPECIALS) + 256
TOKENS: Final = WRITTEN_TOKENS + len(THINK)

#: A plain chat is roles and contents. Tools, calls and their results are written as Hermes has it;
#: there is no special token for the role of a tool, so that is text.
CHAT_TEMPLATE: Final = (
    "{% if tools %}<|system|>{% for t in tools %}<tools>{{ t | tojson }}</tools>{% endfor %}"
    "{% endif %}"
    "{% for m in messages %}"
    "{% if m['role'] == 'tool' %}<|user|><tool_response>{{ m['content'] }}</tool_response>"
    "{% else %}<|{{ m['role'] }}|>{{ m['content'] if m['content'] is not none else '' }}"
    "{% for c in m['tool_calls'] or [] %}<tool_call>"
    "{{ {'name': c['function']['name'], 'arguments': c['function']['arguments']} | tojson }}"
    "</tool_call>{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

#: Standard deviations: what reads and writes tokens, and the layers between.
_OUTER_STD, _INNER_STD = 0.4, 0.15


def build(directory: Path) -> None:
    """Write config, weights (bfloat16, 330 kB), tokenizer and chat template into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    _tokenizer().save_pretrained(directory)
    _weights().save_pretrained(directory)


def _tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415
    from transformers import (  # type: ignore[import-not-found]  # noqa: PLC0415
        PreTrainedTokenizerFast,
    )

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate((*SPECIALS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in THINK])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIALS[PAD_ID],
        bos_token=SPECIALS[BOS_ID],
        eos_token=SPECIALS[EOS_ID],
        model_max_length=CONTEXT_TOKENS_MAX,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _weights() -> Any:
    import torch  # type: ignore[import-not-found]  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the smallest that attention on CPUs takes
        max_position_embeddings=CONTEXT_TOKENS_MAX,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        tie_word_embeddings=False,
    )
    random = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                outer = "lm_head" in name or "embed" in name
                std = _OUTER_STD if outer else _INNER_STD
                parameter.normal_(0, std, generator=random)
        model.lm_head.weight[WRITTEN_TOKENS:] = 0
    model = model.to(torch.bfloat16)
    model.generation_config.eos_token_id = EOS_ID
    return model
