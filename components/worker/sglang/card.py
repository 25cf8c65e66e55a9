"""The model's card: from the settings, and from a directory with the model's tokenizer.

Nothing here needs transformers: ``tokenizer.json`` is read by tokenizers, the template and the
special tokens stand in ``tokenizer_config.json``, further end ids in ``generation_config.json``.
"""

import zlib
from pathlib import Path
from typing import Any, Final

import orjson
from tokenizers import Tokenizer

from components.host.errors import CannotStart
from schemas.fleet import Feature, ModelCard

#: What SGLang does with token ids; with text alone the ids of a bias or a prompt mean nothing.
FEATURES: Final[tuple[Feature, ...]] = (
    "structured_outputs",
    "prompt_logprobs",
    "logit_bias",
    "min_p",
)
TEXT_FEATURES: Final[tuple[Feature, ...]] = ("structured_outputs", "min_p", "renders")


def model_card(
    name: str, created_s: int, context_tokens_max: int, tokenizer_dir: Path | None
) -> ModelCard:
    """Raises ``CannotStart`` for a directory that has no tokenizer."""
    if tokenizer_dir is None:
        return ModelCard(
            model=name,
            created_s=created_s,
            context_tokens_max=context_tokens_max,
            features=TEXT_FEATURES,
        )
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise CannotStart(f"no tokenizer.json to read in {tokenizer_dir}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = _table(tokenizer_dir / "tokenizer_config.json")
    return ModelCard(
        model=name,
        created_s=created_s,
        context_tokens_max=context_tokens_max,
        tokenizer_json=zlib.compress(tokenizer.to_str().encode(), 9),
        chat_template=_chat_template(tokenizer_dir, config),
        bos_token_id=_token_id(tokenizer, config.get("bos_token")),
        eos_token_ids=_end_ids(tokenizer, config, _table(tokenizer_dir / "generation_config.json")),
        features=FEATURES,
    )


def _table(path: Path) -> dict[str, Any]:
    """A JSON object from a file that need not be there."""
    try:
        table = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, orjson.JSONDecodeError) as error:
        raise CannotStart(f"cannot read {path}: {error}") from error
    if not isinstance(table, dict):
        raise CannotStart(f"{path} holds no JSON object")
    return table


def _chat_template(directory: Path, config: dict[str, Any]) -> str:
    """A file of its own wins; of several in the configuration, the default one."""
    own = directory / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    given = config.get("chat_template") or ""
    if isinstance(given, list):
        named = {t.get("name"): t.get("template") for t in given if isinstance(t, dict)}
        given = named.get("default") or ""
    return given if isinstance(given, str) else ""


def _token_id(tokenizer: Tokenizer, token: Any) -> int | None:
    """A special token is given as its text, or as a table with its text in ``content``."""
    text = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(text) if isinstance(text, str) else None


def _end_ids(
    tokenizer: Tokenizer, config: dict[str, Any], generation: dict[str, Any]
) -> tuple[int, ...]:
    """Every id that ends a text, the tokenizer's own first."""
    more = generation.get("eos_token_id")
    ids = [_token_id(tokenizer, config.get("eos_token"))]
    ids += more if isinstance(more, list) else [more]
    return tuple(dict.fromkeys(i for i in ids if type(i) is int))
