"""From messages and texts to token ids, with what the model card brings: tokenizer and template.

Chat templates run the way Hugging Face's libraries run them (same whitespace rules, same helpers),
in Jinja's sandbox: a template comes with the model, its author is not ours.
"""

import json
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from tokenizers import Tokenizer

from components.gateway.errors import context_exceeded, invalid, shown
from schemas.fleet import ModelCard

TOKENIZER_BYTES_MAX: Final = 128 * 1024 * 1024

#: For models that publish no template: roles and texts, a line each.
PLAIN_TEMPLATE: Final = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


#: What expressions in a template may raise, besides Jinja's own errors.
_TEMPLATE_FAULTS: Final = (
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)


class BadModelCard(ValueError):
    """Tokenizer or template of a card cannot be read: the model cannot be served here."""


class TemplateRefused(Exception):
    """The template itself says that these messages are not for it (``raise_exception``)."""


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks what the assistant wrote, for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise TemplateRefused(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002  (a template may give them by place)
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Like Hugging Face's filter: Jinja's own escapes for HTML, which no model expects."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _local_time(layout: str) -> str:
    """What templates call ``strftime_now``: some tell the model today's date."""
    return time.strftime(layout)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _local_time
    return environment


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its card describes it. Without a tokenizer, each byte of UTF-8 is a token."""

    card: ModelCard
    _tokenizer: Tokenizer | None
    _template: jinja2.Template
    _names: Mapping[str, str] = field(default_factory=dict)
    #: Characters of the longest token: a text has at least its length through this many tokens.
    _token_chars_max: int = 1

    @classmethod
    def from_card(cls, card: ModelCard) -> "Model":
        """Takes up to a second for a large vocabulary; raises ``BadModelCard``."""
        tokenizer = _tokenizer_of(card)
        names = {}
        if tokenizer is not None:
            ids = {
                "bos_token": card.bos_token_id,
                "eos_token": next(iter(card.eos_token_ids), None),
            }
            names = {n: tokenizer.id_to_token(i) or "" for n, i in ids.items() if i is not None}
        try:
            template = _environment().from_string(card.chat_template or PLAIN_TEMPLATE)
        except jinja2.TemplateError as error:
            raise BadModelCard(f"{card.model}: chat template: {error}") from error
        chars_max = max(map(len, tokenizer.get_vocab())) if tokenizer else 1
        return cls(card, tokenizer, template, names, chars_max)

    @property
    def vocabulary_size(self) -> int:
        return 256 if self._tokenizer is None else int(self._tokenizer.get_vocab_size())

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The prompt of a chat; raises ``ApiError`` when the template refuses the messages."""
        try:
            text = self._template.render(
                messages=messages,
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._names,
            )
        except TemplateRefused as error:
            said = shown(str(error))
            raise invalid("messages", f"The chat template does not allow this: {said}") from None
        except (jinja2.TemplateError, *_TEMPLATE_FAULTS):
            # The template expects other messages than these.
            raise invalid("messages", "The chat template cannot render these messages") from None
        return self._ids(text, "messages", special_tokens=False)

    def text_ids(self, text: str) -> list[int]:
        """A text's token ids, with what the tokenizer puts in front; raises ``ApiError``."""
        return self._ids(text, "prompt", special_tokens=True)

    def _ids(self, text: str, param: str, *, special_tokens: bool) -> list[int]:
        least = len(text) // self._token_chars_max
        if least > self.card.context_tokens_max:
            # Told before it costs seconds to find out how many there are.
            has = f"the prompt has more than {least}"
            raise context_exceeded(param, self.card.context_tokens_max, has)
        if self._tokenizer is None:
            return list(text.encode())
        # The one that does not compute offsets.
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def text_of(self, token_ids: Sequence[int]) -> str:
        """The text of a prompt that came as ids (for ``echo``)."""
        if self._tokenizer is None:
            return bytes(token_ids).decode(errors="replace")
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def check_ids(self, token_ids: Sequence[int]) -> None:
        """Raises ``ApiError`` for ids that this model does not have: an engine may die of them."""
        size = self.vocabulary_size
        if token_ids and max(token_ids) >= size:
            raise invalid("prompt", f"token ids of this model go from 0 to {size - 1}")


def _tokenizer_of(card: ModelCard) -> Tokenizer | None:
    if not card.tokenizer_json:
        return None
    unpack = zlib.decompressobj()
    try:
        text = unpack.decompress(card.tokenizer_json, TOKENIZER_BYTES_MAX)
        if unpack.unconsumed_tail:
            raise BadModelCard(f"{card.model}: its tokenizer is over {TOKENIZER_BYTES_MAX} bytes")
        return Tokenizer.from_str(text.decode())
    except BadModelCard:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise BadModelCard(f"{card.model}: its tokenizer cannot be read: {error}") from error
