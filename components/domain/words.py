"""The language of simulated models: a vocabulary of common words, its tokenizer, its chat template.

A token is a whole word with its space (`" house"`, `"House"`, ...), a mark, a single character,
or, for everything else, one byte. So what a simulated model writes reads as words at one token
each, and any text a user sends becomes tokens and the same text again. Spaces stand in the tokens
as they are: the usual stand-in for them (U+2581) could not be told from the character itself.

`data/words.txt` holds the words, most common first; the list was written for this project.
"""

import json
import math
import zlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from schemas.fleet import ModelCard

SPECIAL = (
    "<unk>",
    "<|begin|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
)
BEGIN_ID, END_ID = 1, 2

COMMA, PARAGRAPH = ",", "\n\n"
SENTENCE_ENDS = (".", "?", "!")

# One line per message, so that the tokens of a turn do not depend on the turns after it.
CHAT_TEMPLATE = (
    "{{ '<|begin|>' }}"
    "{% for message in messages %}"
    "{% set role = message['role'] if message['role'] in ('user', 'assistant', 'tool')"
    " else 'system' %}"
    "{{ '<|' + role + '|>\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% elif message['content'] %}"
    "{% for part in message['content'] %}{{ part['text'] or '' }}{% endfor %}"
    "{% endif %}"
    "{{ '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)

_CHARACTER_SCORE = -12.0
_BYTE_SCORE = -100.0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Pieces by id, and the ids that sentences are made of.

    `words` continue a sentence, `capitals` begin one after another, `openings` begin a text.
    `boundaries` are ids after which a text begins: line ends and special tokens. The piece of a
    special token is empty: it has an id but adds nothing to the text.
    """

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    words: tuple[int, ...]
    capitals: tuple[int, ...]
    openings: tuple[int, ...]
    comma: int
    paragraph: int
    sentence_ends: tuple[int, ...]
    boundaries: frozenset[int]

    def __len__(self) -> int:
        return len(self.pieces)

    def text(self, token_id: int) -> str:
        """What the token adds to a text. An id from elsewhere adds the replacement character."""
        return self.pieces[token_id] if token_id < len(self.pieces) else "\ufffd"


@cache
def vocabulary() -> Vocabulary:
    """The one vocabulary of all simulated models; about 5,500 tokens."""
    words = resources.files(__package__).joinpath("data/words.txt").read_text("utf-8").split()
    names: dict[str, float] = dict.fromkeys(SPECIAL, 0.0)
    names |= {f"<0x{byte:02X}>": _BYTE_SCORE for byte in range(256)}
    names |= {chr(code): _CHARACTER_SCORE for code in (9, 10, *range(32, 127))}
    names[PARAGRAPH] = _CHARACTER_SCORE
    for rank, word in enumerate(words):
        score = -3.0 - math.log(rank + 1) / 2
        for form in (" " + word, word, " " + word.capitalize(), word.capitalize()):
            names[form] = max(score, names.get(form, score))
    ids = {name: place for place, name in enumerate(names)}
    ends = tuple(ids[mark] for mark in SENTENCE_ENDS)
    first_byte = len(SPECIAL)
    return Vocabulary(
        pieces=tuple(_text_of(name, ids[name], first_byte) for name in names),
        scores=tuple(names.values()),
        words=tuple(ids[" " + w] for w in words),
        capitals=tuple(ids[" " + w.capitalize()] for w in words),
        openings=tuple(ids[w.capitalize()] for w in words),
        comma=ids[COMMA],
        paragraph=ids[PARAGRAPH],
        sentence_ends=ends,
        boundaries=frozenset((*range(first_byte), ids["\n"], ids[PARAGRAPH])),
    )


def _text_of(name: str, token_id: int, first_byte: int) -> str:
    if token_id < first_byte:
        return ""
    if token_id < first_byte + 256:
        # Never written by a simulated model, so there is no need to join bytes to characters.
        byte = token_id - first_byte
        return chr(byte) if byte < 128 else "\ufffd"
    return name


@cache
def tokenizer_json() -> str:
    """The `tokenizer.json` of simulated models, as the `tokenizers` library reads it.

    A unigram model: the cheapest way to write a text, and words are cheap, characters dear, bytes
    dearest (dearer than spelling out the six characters of a byte's name).
    """
    language = vocabulary()
    names = _names(language)
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(place, name) for place, name in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {
            # A word keeps the space before it: what follows is then found piece by piece.
            "type": "Split",
            "pattern": {"Regex": r" ?[^\s]+|\s+?(?= [^\s])|\s+"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": SPECIAL[BEGIN_ID], "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {
                SPECIAL[BEGIN_ID]: {
                    "id": SPECIAL[BEGIN_ID],
                    "ids": [BEGIN_ID],
                    "tokens": [SPECIAL[BEGIN_ID]],
                }
            },
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "byte_fallback": True,
            "vocab": [[n, s] for n, s in zip(names, language.scores, strict=True)],
        },
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _names(language: Vocabulary) -> list[str]:
    first_byte = len(SPECIAL)
    names = list(language.pieces)
    names[:first_byte] = SPECIAL
    names[first_byte : first_byte + 256] = [f"<0x{byte:02X}>" for byte in range(256)]
    return names


def _added(token_id: int, name: str) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": name, **flags, "special": True}


def model_card(model: str, *, created_s: int, context_tokens_max: int) -> ModelCard:
    """What a gateway needs to serve the simulated `model`."""
    return ModelCard(
        model=model,
        created_s=created_s,
        context_tokens_max=context_tokens_max,
        tokenizer_json=zlib.compress(tokenizer_json().encode(), 9),
        chat_template=CHAT_TEMPLATE,
        bos_token_id=BEGIN_ID,
        eos_token_ids=(END_ID,),
    )
