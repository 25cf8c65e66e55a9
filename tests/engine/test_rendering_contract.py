"""A chat becomes the same token ids at our gateway and in vLLM, whatever its template does.

The templates are made up; each does what a family of published ones does.
"""

import json
from types import SimpleNamespace

import pytest

from components.gateway.errors import ApiError
from components.gateway.openai_requests import parse_chat, parse_completion
from components.gateway.rendering import Model

TEMPLATES = {
    "tiny": None,
    "markers, newline after each turn": (
        "{% for message in messages %}"
        "{% if loop.first and message['role'] != 'system' %}"
        "{{ '<|system|>\\nBe brief.<|user|>\\n' }}{% endif %}"
        "{{ '<|' + message['role'] + '|>' + '\\n' + message['content'] + eos_token + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    ),
    "begin of text, headers, trimmed content, a date": (
        "{{- bos_token }}\n"
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system = messages[0]['content'] | trim %}\n"
        "    {%- set messages = messages[1:] %}\n"
        "{%- else %}\n"
        "    {%- set system = '' %}\n"
        "{%- endif %}\n"
        "{%- if not date is defined %}\n"
        "    {%- if strftime_now is defined %}{%- set date = strftime_now('%d %b %Y') %}\n"
        "    {%- else %}{%- set date = 'never' %}{%- endif %}\n"
        "{%- endif %}\n"
        "{{- '[system] ' + date + '\\n\\n' + system + '\\n' }}\n"
        "{%- for message in messages %}\n"
        "    {{- '[' + message.role + ']\\n\\n' + message.content | trim + eos_token }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- '[assistant]\\n\\n' }}{%- endif %}\n"
    ),
    "turns must alternate, system goes into the first": (
        "{%- if messages[0]['role'] == 'system' -%}"
        "{%- set system = messages[0]['content'] -%}{%- set rest = messages[1:] -%}"
        "{%- else -%}{%- set rest = messages -%}{%- endif -%}"
        "{{ bos_token }}"
        "{%- for message in rest -%}"
        "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{ raise_exception('turns must alternate') }}{%- endif -%}"
        "{%- if message['role'] == 'user' -%}"
        "{%- if loop.last and system is defined -%}"
        "{{ '[INST] ' + system + '\\n\\n' + message['content'] + ' [/INST]' }}"
        "{%- else -%}{{ '[INST] ' + message['content'] + ' [/INST]' }}{%- endif -%}"
        "{%- else -%}{{ ' ' + message['content'] | trim + eos_token }}{%- endif -%}"
        "{%- endfor -%}"
    ),
    "roles by other names, no system": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start>' + role + '\\n' + message['content'] | trim + '<end>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start>model\\n' }}{% endif %}"
    ),
    "indented source, loop controls, namespace, macro": (
        "{% macro turn(role, text) %}\n"
        "  ### {{ role | capitalize }}:\n"
        "  {{ text }}\n"
        "{% endmacro %}\n"
        "{% set seen = namespace(users=0) %}\n"
        "{% for message in messages %}\n"
        "  {% if message.role == 'system' %}{% continue %}{% endif %}\n"
        "  {% if message.role == 'user' %}{% set seen.users = seen.users + 1 %}{% endif %}\n"
        "  {% if seen.users > 3 %}{% break %}{% endif %}\n"
        "  {{ turn(message.role, message.content) }}\n"
        "{% endfor %}\n"
        "{{ seen.users }} asked.\n"
    ),
    "JSON inside": (
        "{% for message in messages %}{{ message | tojson }}\n"
        "{{ {'a': message.content, 'b': 1} | tojson(indent=2) }}"
        "{{ {'b': 1, 'a': 'ü<'} | tojson(separators=(',', ':'), sort_keys=True) }}"
        "{{ 'ü' | tojson(ensure_ascii=True) }}{% endfor %}"
    ),
    "content is a text or a list of parts": (
        "{% for message in messages %}<{{ message['role'] }}>"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    ),
    "what is generated is marked, tools are asked for": (
        "{% if tools %}TOOLS{% endif %}{% if documents %}DOCS{% endif %}"
        "{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ message['role'] }}: {{ message['content'] }}\n{% endif %}{% endfor %}"
    ),
    "no way to ask for an answer, missing names": (
        "{% for m in messages %}{{ m.role }}{{ m.name }}{{ m.nothing | default('-') }}"
        "{{ m.content }}{% endfor %}{{ unknown }}"
    ),
}

USER = {"role": "user", "content": "Which track is free?"}
CHATS = {
    "one question": [USER],
    "a system prompt": [{"role": "system", "content": " You run a yard.  "}, USER],
    "a longer talk": [
        {"role": "system", "content": "Short."},
        USER,
        {"role": "assistant", "content": "Track 4. "},
        {"role": "user", "content": "And\n\nthe next?\t"},
        {"role": "assistant", "content": "Track 7"},
        {"role": "user", "content": "Über 10 €? 线路 🚂 <|user|> <eos>"},
    ],
    "a talk that does not alternate": [USER, USER],
    "text in parts": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "First."}, {"type": "text", "text": "Second."}],
        }
    ],
    "empty": [{"role": "user", "content": ""}],
}


#: vLLM hands the parts over as they are to templates that go through them.
LISTS = ("content is a text or a list of parts", "text in parts")


@pytest.fixture(scope="module")
def vllm_config(tiny_model):
    arguments = pytest.importorskip("vllm.engine.arg_utils")
    return arguments.AsyncEngineArgs(
        model=str(tiny_model), max_model_len=2048
    ).create_engine_config()


@pytest.fixture(scope="module")
def renderer(vllm_config):
    made = pytest.importorskip("vllm.renderers").renderer_from_config(vllm_config)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def card(vllm_config, renderer):
    from components.worker.vllm.card import card_of  # noqa: PLC0415

    llm = SimpleNamespace(
        get_tokenizer=renderer.get_tokenizer, model_config=vllm_config.model_config
    )
    return card_of(llm, "tiny", 1)


def online(vllm_config, renderer, template):
    return pytest.importorskip("vllm.renderers.online_renderer").OnlineRenderer(
        model_config=vllm_config.model_config,
        renderer=renderer,
        request_logger=None,
        chat_template=template,
        chat_template_content_format="auto",
    )


async def by_vllm(vllm_config, renderer, template, messages):
    """Token ids, or None when vLLM refuses the chat."""
    protocol = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
    errors = pytest.importorskip("vllm.exceptions")
    try:
        request = protocol.ChatCompletionRequest(model="tiny", messages=messages)
        _, [rendered] = await online(vllm_config, renderer, template).render_chat(request)
    except errors.VLLMClientError:
        return None
    return rendered["prompt_token_ids"]


def by_gateway(card, template, messages):
    """Token ids, or None when our gateway refuses the chat."""
    if template is not None:
        card = card.model_copy(update={"chat_template": template})
    call = parse_chat(json.dumps({"model": "tiny", "messages": messages}).encode())
    try:
        return Model.from_card(card).chat_ids(call.messages)
    except ApiError:
        return None


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
async def test_a_chat_has_the_same_ids_here_and_there(vllm_config, renderer, card, template, chat):
    source, messages = TEMPLATES[template], CHATS[chat]
    theirs = await by_vllm(vllm_config, renderer, source, messages)
    ours = by_gateway(card, source, messages)
    if theirs is None:
        assert ours is None
        return
    assert ours is not None
    if (template, chat) == LISTS:
        pytest.xfail("the gateway joins parts by line ends, whatever the template wants")
    model = Model.from_card(card)
    assert (ours, model.text_of(ours)) == (theirs, model.text_of(theirs))


@pytest.mark.parametrize("text", ["x", "One, two", " lead  \n", "ü€🚂线", "<eos>a<bos>", "\r\n\0"])
async def test_a_text_has_the_same_ids_here_and_there(vllm_config, renderer, card, text):
    protocol = pytest.importorskip("vllm.entrypoints.openai.completion.protocol")
    request = protocol.CompletionRequest(model="tiny", prompt=text)
    made = await online(vllm_config, renderer, None).render_completion(request)
    call = parse_completion(json.dumps({"model": "tiny", "prompt": text}).encode())
    [prompt] = call.prompts
    assert isinstance(prompt, str)
    assert Model.from_card(card).text_ids(prompt) == made[0]["prompt_token_ids"]


def test_the_card_of_a_directory_is_that_of_its_files(card, tiny_model):
    assert card.chat_template == (tiny_model / "chat_template.jinja").read_text()
    assert Model.from_card(card).vocabulary_size == 264
