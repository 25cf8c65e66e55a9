"""Messages and texts become token ids as the model's authors meant it, inside a sandbox."""

import json
import zlib
from typing import Any

import pytest

from components.domain.words import BEGIN_ID, END_ID, model_card
from components.gateway.errors import ApiError
from components.gateway.rendering import BadModelCard, Model
from schemas.fleet import ModelCard

WORDS = model_card("sim/words", created_s=1, context_tokens_max=1000)
HELLO = [{"role": "user", "content": "hello"}]


def model(template: str = "", **changes: Any) -> Model:
    return Model.from_card(WORDS.model_copy(update={"chat_template": template, **changes}))


def rendered(template: str, messages: Any = HELLO) -> str:
    """What the template makes of the messages: as bytes, so that every character is seen."""
    plain = ModelCard(model="m", created_s=1, context_tokens_max=10_000, chat_template=template)
    return bytes(Model.from_card(plain).chat_ids(messages)).decode()


def test_a_chat_goes_through_the_template_and_begins_as_it_says():
    ids = Model.from_card(WORDS).chat_ids(HELLO)
    assert ids[0] == BEGIN_ID
    assert ids.count(BEGIN_ID) == 1
    assert ids.count(END_ID) == 1


def test_a_text_begins_with_what_the_tokenizer_puts_in_front():
    words = Model.from_card(WORDS)
    ids = words.text_ids("hello there")
    assert ids[0] == BEGIN_ID
    assert words.text_of(ids) == "hello there"


def test_without_a_template_roles_and_texts_stand_a_line_each():
    assert rendered("") == "user: hello\nassistant: "


def test_without_a_tokenizer_bytes_are_tokens():
    plain = Model.from_card(ModelCard(model="m", created_s=1, context_tokens_max=100))
    assert plain.text_ids("hé") == [104, 195, 169]
    assert plain.text_of([104, 195, 169]) == "hé"
    assert plain.vocabulary_size == 256


def test_templates_have_the_whitespace_rules_and_helpers_they_were_written_for():
    template = """
    {%- for m in messages %}
        {% if loop.index0 == 1 %}{% continue %}{% endif %}
    {{ m['role'] | upper }}={{ m | tojson }}
    {% endfor %}
    {% generation %}said{% endgeneration %}
    {%- if add_generation_prompt %}>{% endif %}"""
    messages = [{"role": "user", "content": "<é>"}, {"role": "user", "content": "left out"}]
    text = rendered(template, messages)
    assert text == '    USER={"role": "user", "content": "<é>"}\nsaid>'


def test_the_names_of_the_special_tokens_are_known_to_templates():
    named = model("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}")
    assert named.chat_ids(HELLO)[0] == BEGIN_ID
    assert named.chat_ids(HELLO)[-1] == END_ID


def test_a_template_may_refuse_messages_in_its_own_words():
    with pytest.raises(ApiError) as caught:
        rendered("{{ raise_exception('roles must alternate') }}")
    assert (caught.value.status, caught.value.param) == (400, "messages")
    assert "roles must alternate" in caught.value.message


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[9]['content'] }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ 1 / 0 }}",
        "{{ range(99999999) | list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_what_a_template_may_not_do_ends_in_a_refusal_without_its_words(template):
    with pytest.raises(ApiError) as caught:
        rendered(template)
    assert (caught.value.status, caught.value.param) == (400, "messages")
    assert caught.value.message == "The chat template cannot render these messages"


def test_what_a_client_writes_is_never_taken_for_a_template():
    assert "{{ 7 * 7 }}" in rendered("", [{"role": "user", "content": "{{ 7 * 7 }}"}])


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_json": b"no zlib"},
        {"tokenizer_json": zlib.compress(b"{}")},
        {"tokenizer_json": zlib.compress(b"\xff")},
        {"chat_template": "{% for %}"},
    ],
)
def test_a_card_that_cannot_be_read_is_refused(changes):
    with pytest.raises(BadModelCard):
        Model.from_card(WORDS.model_copy(update=changes))


def test_a_tokenizer_that_unpacks_without_end_is_refused(monkeypatch):
    monkeypatch.setattr("components.gateway.rendering.TOKENIZER_BYTES_MAX", 100_000)
    bomb = zlib.compress(json.dumps({"x": "0" * 1_000_000}).encode(), 9)
    with pytest.raises(BadModelCard, match="bytes"):
        Model.from_card(WORDS.model_copy(update={"tokenizer_json": bomb}))


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised():
    words = Model.from_card(WORDS)
    for render in (
        words.text_ids,
        lambda text: words.chat_ids([{"role": "user", "content": text}]),
    ):
        with pytest.raises(ApiError) as caught:
            render("word " * 1_600_000)
        assert caught.value.code == "context_length_exceeded"


def test_ids_outside_the_vocabulary_are_refused():
    words = Model.from_card(WORDS)
    words.check_ids([0, words.vocabulary_size - 1])
    with pytest.raises(ApiError):
        words.check_ids([words.vocabulary_size])
