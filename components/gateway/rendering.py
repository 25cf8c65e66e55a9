"""From messages and texts to token ids, with what the model card brings: tokenizer and template."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import jinja2
from tokenizers import Tokenizer

from components.gateway.chat_template import ChatTemplate, Messages
from components.gateway.errors import context_exceeded, invalid
from schemas.fleet import ModelCard

TOKENIZER_BYTES_MAX: Final = 128 * 1024 * 1024
#: No text is taken to have more bytes per token than this, where only the engine knows its tokens.
BYTES_PER_TOKEN_MAX: Final = 8


class BadModelCard(ValueError):
    """Tokenizer or template of a card cannot be read: the model cannot be served here."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its card describes it. Without a tokenizer, each byte of UTF-8 is a token.

    An engine that renders chats itself gets the messages; then the ids of a chat are the bytes of
    a plain rendering, good for hashes and as a bound of its length.
    """

    card: ModelCard
    _tokenizer: Tokenizer | None
    _template: ChatTemplate
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
            template = ChatTemplate.of("" if "renders" in card.features else card.chat_template)
        except jinja2.TemplateError as error:
            raise BadModelCard(f"{card.model}: chat template: {error}") from error
        chars_max = max(map(len, tokenizer.get_vocab())) if tokenizer else 1
        return cls(card, tokenizer, template, names, chars_max)

    @property
    def vocabulary_size(self) -> int:
        return 256 if self._tokenizer is None else int(self._tokenizer.get_vocab_size())

    def chat_ids(self, messages: Messages, tools: Messages | None = None) -> list[int]:
        """The prompt of a chat; raises ``ApiError`` when the template refuses the messages."""
        text = self._template.text(messages, tools, self._names)
        if "renders" not in self.card.features:
            return self._ids(text, "messages", special_tokens=False)
        data = text.encode()
        if len(data) > self.card.context_tokens_max * BYTES_PER_TOKEN_MAX:
            has = f"the prompt has {len(data)} bytes"
            raise context_exceeded("messages", self.card.context_tokens_max, has)
        return list(data)

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

    def text_of(self, token_ids: Sequence[int], *, special_tokens: bool = False) -> str:
        """The text of a prompt that came as ids (for ``echo``); with its special tokens or not."""
        if self._tokenizer is None:
            return bytes(token_ids).decode(errors="replace")
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=not special_tokens)
        return text

    def check_ids(self, token_ids: Sequence[int], param: str = "prompt") -> None:
        """Raises ``ApiError`` for ids that this model does not have: an engine may die of them."""
        size = self.vocabulary_size
        if token_ids and max(token_ids) >= size:
            raise invalid(param, f"token ids of this model go from 0 to {size - 1}")


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
