"""What a gateway needs of a model, from the files beside its weights. No vLLM, no transformers."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from tokenizers import Tokenizer

from components.host.errors import CannotStart
from components.worker.openai_http.settings import Dialect, ServedModel
from schemas.fleet import Feature, ModelCard

FILE_BYTES_MAX: Final = 256 << 20
#: How a text ends whose last character is not complete, and how many ids may make up one.
_OPEN: Final = "\ufffd"
_CONTEXT: Final = 4

_FEATURES: Final[dict[Dialect, tuple[Feature, ...]]] = {
    "vllm": ("structured_outputs", "prompt_logprobs", "logit_bias", "min_p"),
    "openai": ("structured_outputs", "logit_bias"),
}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's tokenizer as it is used here, and what goes with it."""

    tokenizer: Tokenizer
    chat_template: str = ""
    bos_token_id: int | None = None
    #: The tokenizer's own end of text first.
    eos_token_ids: tuple[int, ...] = ()

    def text_of(self, token_id: int, before: Sequence[int] = ()) -> str:
        """What one id adds behind those before it, specials included.

        As vLLM says it: an id that leaves a character open has no text, and the one that completes
        it has the whole character.
        """
        text = self._decoded([token_id])
        if not text.endswith(_OPEN):
            return text
        for number in range(1, min(len(before), _CONTEXT) + 1):
            context = list(before[-number:])
            whole = self._decoded([*context, token_id])
            if not whole.endswith(_OPEN):
                while context and self._decoded(context[-1:]).endswith(_OPEN):
                    context.pop()
                return whole.removeprefix(self._decoded(context))
        return ""

    def _decoded(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)


def read_model(directory: Path) -> ModelFiles:
    """The files of Hugging Face's layout. Raises ``CannotStart``."""
    source = _read(directory / "tokenizer.json")
    if not source:
        raise CannotStart(f"{directory} has no tokenizer.json")
    try:
        tokenizer = Tokenizer.from_str(source.decode())
    except Exception as error:  # the library has no other
        raise CannotStart(f"{directory}/tokenizer.json: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = _object(directory / "tokenizer_config.json")
    generation = _object(directory / "generation_config.json")
    more = generation.get("eos_token_id")
    own = _id_of(tokenizer, config.get("eos_token"))
    ends = [own, *(more if isinstance(more, list) else [more])]
    return ModelFiles(
        tokenizer,
        _template(directory, config),
        _id_of(tokenizer, config.get("bos_token")),
        tuple(dict.fromkeys(i for i in ends if isinstance(i, int))),
    )


def card_of(
    served: ServedModel,
    dialect: Dialect,
    files: ModelFiles | None,
    context_tokens_max: int,
    parses: Sequence[Feature] = (),
) -> ModelCard:
    """Without files the engine renders chats itself: only the server can, and its parsers."""
    features = _FEATURES[dialect]
    if files is None:
        return ModelCard(
            model=served.name,
            created_s=served.created_s,
            context_tokens_max=context_tokens_max,
            features=(*features, "renders", *parses),
        )
    return ModelCard(
        model=served.name,
        created_s=served.created_s,
        context_tokens_max=context_tokens_max,
        tokenizer_json=zlib.compress(files.tokenizer.to_str().encode(), 9),
        chat_template=files.chat_template,
        bos_token_id=files.bos_token_id,
        eos_token_ids=files.eos_token_ids,
        features=features,
    )


def _template(directory: Path, config: dict[str, Any]) -> str:
    if source := _read(directory / "chat_template.jinja"):
        return source.decode(errors="replace")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by purpose
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def _id_of(tokenizer: Tokenizer, token: object) -> int | None:
    """The id of a special token, which stands there as text or as an object with ``content``."""
    text = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(text) if isinstance(text, str) else None


def _object(path: Path) -> dict[str, Any]:
    source = _read(path)
    try:
        value = orjson.loads(source) if source else {}
    except orjson.JSONDecodeError as error:
        raise CannotStart(f"{path}: {error}") from error
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> bytes:
    """Nothing when there is no such file."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise CannotStart(f"{path}: {error}") from error
    if len(data) > FILE_BYTES_MAX:
        raise CannotStart(f"{path} has more than {FILE_BYTES_MAX} bytes")
    return data
