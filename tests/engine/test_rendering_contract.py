"""A chat becomes the same token ids at our gateway and in vLLM, whatever its template does.

The templates are made up; each does what a family of published ones does.
"""

import json
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer

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
    "tools as JSON in front, calls and answers between tags": (
        "{%- if tools %}{{- '<tools>' }}{%- for tool in tools %}{{- '\n' + (tool | tojson) }}"
        "{%- endfor %}{{- '</tools>\n' }}{%- endif %}"
        "{%- for message in messages %}"
        "{%- if message.role == 'tool' %}"
        "{{- '<answer>' + message.content + '</answer>' }}"
        "{%- else %}"
        "{{- message.role + ': ' + (message.content or '') }}"
        "{%- for call in message.tool_calls or [] %}{%- set call = call.function or call %}"
        '{{- \'<call>{"name": "\' + call.name + \'", "arguments": \' }}'
        "{{- call.arguments | tojson }}{{- '}</call>' }}"
        "{%- endfor %}{%- endif %}{{- '\n' }}{%- endfor %}"
    ),
    "one call at a time, its arguments one by one": (
        "{% for message in messages %}"
        "{% if message.tool_calls is defined %}"
        "{% if message.tool_calls | length != 1 %}{{ raise_exception('one call only') }}{% endif %}"
        "{% set call = message.tool_calls[0].function %}[{{ call.name }}"
        "{% for name, value in call.arguments.items() %} {{ name }}={{ value }}{% endfor %}]"
        "{% elif message.role == 'tool' %}({{ message.tool_call_id }}: {{ message.content }})"
        "{% else %}{{ message.content }}{% endif %}\n{% endfor %}"
        "{% for tool in tools or [] %}{{ tool.function.name }}: {{ tool.function.description }}"
        "{% for name in tool.function.parameters.properties %} {{ name }}{% endfor %}\n{% endfor %}"
    ),
    "all there is, as JSON": "{{ messages | tojson }}{{ tools | tojson }}",
    "all there is, as JSON, in parts": (
        "{{ messages | tojson }}{{ tools | tojson }}"
        "{% for m in messages %}{% for part in m.content %}{% endfor %}{% endfor %}"
    ),
    "parts behind a macro, an alias and a filter": (
        "{% macro show(said) %}{% if said is string %}{{ said }}{% else %}"
        "{% for part in said %}{{ loop.index }}{{ part.text }};{% endfor %}{% endif %}"
        "{% endmacro %}"
        "{% set talk = messages[0:] | list %}"
        "{% for turn in talk %}{{ turn.role }}{{ show(turn['content']) }}{% endfor %}"
    ),
    "a macro over something else, a variable called content": (
        "{% macro show(content) %}{% for c in content %}{{ c }}.{% endfor %}{% endmacro %}"
        "{% for m in messages %}{% set content = m.content %}{{ show('abc') }}"
        "{% if content is string %}{{ content }}{% else %}PARTS{% endif %}{% endfor %}"
    ),
    "a loop over a variable called content": (
        "{% for m in messages %}{% set content = m['content'] %}"
        "{% if content is not string %}{% for c in content %}|{{ c['text'] }}{% endfor %}"
        "{% else %}{{ content }}{% endif %}{% endfor %}"
    ),
    "developers have a place, reasoning too": (
        "{% for m in messages %}{% if m.role == 'developer' %}DEV {{ m.tools }}{% endif %}"
        "{{ m.role }}({{ m.reasoning_content }}|{{ m.reasoning }}): {{ m.content }}\n{% endfor %}"
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
    "developers among the rest": [
        {"role": "system", "content": "Short."},
        USER,
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
    ],
    "reasoning of an earlier turn": [
        USER,
        {"role": "assistant", "content": "Track 4", "reasoning_content": "4 < 7"},
        {"role": "user", "content": "Why?"},
    ],
    "a call and its answer": [
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call-1",
                    "type": "function",
                    "function": {"name": "tracks", "arguments": '{"yard": "Ü", "free": true}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call-1", "content": '{"track": 4}'},
    ],
    "calls that are no objects, answers in parts": [
        USER,
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": text}}
                for i, text in enumerate(["", "{", "[1]", '"x"', '{"a": {"b": [1.0, null]}}'])
            ],
        },
        {
            "role": "tool",
            "tool_call_id": "c0",
            "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
        },
        {"role": "user", "content": "So?"},
    ],
}
TRACKS = {
    "type": "function",
    "function": {
        "name": "tracks",
        "description": "Which tracks are free?",
        "parameters": {
            "type": "object",
            "properties": {"yard": {"type": "string"}, "free": {"type": "boolean"}},
            "required": ["yard"],
        },
        "strict": True,
    },
}
#: Without what may be left out, and with what nobody knows.
BARE = {"type": "function", "function": {"name": "f", "colour": "red"}}
TOOLS = {"no tools": None, "tools": [TRACKS, BARE]}


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
        get_tokenizer=renderer.get_tokenizer,
        model_config=vllm_config.model_config,
        vllm_config=vllm_config,
    )
    return card_of(llm, "tiny", 1)


def online(vllm_config, renderer, template):
    return pytest.importorskip("vllm.renderers.online_renderer").OnlineRenderer(
        model_config=vllm_config.model_config,
        renderer=renderer,
        request_logger=None,
        chat_template=template,
        chat_template_content_format="auto",
        enable_auto_tools=True,
        tool_parser="hermes",
    )


async def by_vllm(vllm_config, renderer, template, asked):
    """Token ids, or None when vLLM refuses the chat."""
    protocol = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
    errors = pytest.importorskip("vllm.exceptions")
    try:
        # From JSON, as a server gets it: it changes what it is given.
        request = protocol.ChatCompletionRequest.model_validate_json(json.dumps(asked))
        _, [rendered] = await online(vllm_config, renderer, template).render_chat(request)
    except errors.VLLMClientError:
        return None
    return rendered["prompt_token_ids"]


def by_gateway(card, template, asked):
    """Token ids, or None when our gateway refuses the chat."""
    if template is not None:
        card = card.model_copy(update={"chat_template": template})
    call = parse_chat(json.dumps(asked).encode())
    tools = call.tools.listed if call.tools else None
    try:
        return Model.from_card(card).chat_ids(call.messages, tools)
    except ApiError:
        return None


@pytest.mark.parametrize("tools", TOOLS)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
async def test_a_chat_has_the_same_ids_here_and_there(
    vllm_config, renderer, card, template, chat, tools
):
    source = TEMPLATES[template]
    asked = {"model": "tiny", "messages": CHATS[chat]}
    if TOOLS[tools]:
        asked["tools"] = TOOLS[tools]
    theirs = await by_vllm(vllm_config, renderer, source, asked)
    ours = by_gateway(card, source, asked)
    if theirs is None:
        assert ours is None
        return
    assert ours is not None
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
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    assert Model.from_card(card).vocabulary_size == tokenizer.get_vocab_size()
