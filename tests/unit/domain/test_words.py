"""The vocabulary and tokenizer of simulated models."""

import zlib

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from components.domain.words import (
    BEGIN_ID,
    CHAT_TEMPLATE,
    END_ID,
    SPECIAL,
    model_card,
    tokenizer_json,
    vocabulary,
)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_str(tokenizer_json())


@given(text=st.text())
def test_any_text_becomes_tokens_and_the_same_text_again(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "text",
    [
        "<0x41><0xFF> <unk> <|end|>",
        "\u2581\u2581x",
        "  two  spaces \r\n\t\x00 and caf\u00e9 \U0001f600",
        "\n\n\n",
    ],
)
def test_texts_that_look_like_tokens_survive_too(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_common_words_are_one_token_each(tokenizer):
    tokens = tokenizer.encode("The house by the river is old.", add_special_tokens=False).tokens
    assert tokens == ["The", " house", " by", " the", " river", " is", " old", "."]


def test_a_prompt_begins_with_the_token_for_it(tokenizer):
    assert tokenizer.encode("house").ids[0] == BEGIN_ID
    assert tokenizer.decode(tokenizer.encode("house").ids) == "house"


def test_what_a_token_adds_to_a_text_is_what_the_tokenizer_makes_of_it(tokenizer):
    language = vocabulary()
    assert tokenizer.get_vocab_size() == len(language)
    sentence = [language.openings[3], language.words[9], language.comma, language.words[4]]
    sentence += [language.sentence_ends[0], language.paragraph, END_ID]
    assert tokenizer.decode(sentence) == "".join(language.text(t) for t in sentence)
    assert language.text(len(language) + 1) == "\ufffd"


def test_the_ids_that_end_things_are_where_the_card_says(tokenizer):
    card = model_card("sim", created_s=1, context_tokens_max=4096)
    assert Tokenizer.from_str(zlib.decompress(card.tokenizer_json).decode()).to_str()
    assert tokenizer.id_to_token(card.bos_token_id) == "<|begin|>"
    assert [tokenizer.id_to_token(t) for t in card.eos_token_ids] == ["<|end|>"]
    assert [tokenizer.token_to_id(name) for name in SPECIAL] == list(range(len(SPECIAL)))


def test_the_template_renders_turns_with_their_special_tokens(tokenizer):
    messages = [
        {"role": "developer", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Good"}, {"type": "text", "text": " day"}],
        },
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "rain"},
    ]
    template = jinja2.Environment(autoescape=False).from_string(CHAT_TEMPLATE)
    text = template.render(messages=messages, add_generation_prompt=True)
    assert text == (
        "<|begin|><|system|>\nBe kind.<|end|>\n<|user|>\nGood day<|end|>\n"
        "<|assistant|>\n<|end|>\n<|tool|>\nrain<|end|>\n<|assistant|>\n"
    )
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert (ids[0], ids.count(END_ID)) == (BEGIN_ID, 4)
    assert ids[-1] in vocabulary().boundaries


def test_the_list_holds_about_a_thousand_plain_words():
    language = vocabulary()
    words = [language.text(t) for t in language.words]
    assert len(words) == len(set(words)) > 1000
    assert all(word[0] == " " and word[1:].isalpha() and word.islower() for word in words)
