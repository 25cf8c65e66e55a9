"""What clients may ask for, and the exact name of what they may not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.gateway.errors import ApiError
from components.gateway.openai_requests import parse_chat, parse_completion
from tests.unit.gateway.calls import chat, completion, refusal


def test_a_plain_chat_has_the_defaults_of_the_api():
    call = chat()
    assert (call.model, call.stream, call.max_tokens) == ("m", False, None)
    assert call.messages == ({"role": "user", "content": "hello"},)
    assert (call.sampling.temperature, call.sampling.n, call.sampling.logprobs) == (1.0, 1, None)


def test_a_plain_completion_writes_sixteen_tokens():
    assert completion().max_tokens == 16


def test_every_sampling_parameter_arrives():
    given_values = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "seed": -7,
        "n": 3,
        "ignore_eos": True,
        "min_tokens": 2,
        "presence_penalty": 0.1,
        "frequency_penalty": -0.2,
        "repetition_penalty": 1.1,
        "stop_token_ids": [5, 6],
    }
    for call in (chat(max_tokens=9, **given_values), completion(max_tokens=9, **given_values)):
        found = call.sampling.model_dump()
        assert {k: found[k] for k in given_values} == given_values | {"stop_token_ids": (5, 6)}
        assert found["max_tokens"] == 9


def test_null_means_the_default():
    names = ["temperature", "top_p", "n", "stop", "seed", "stream", "stream_options", "user"]
    names += ["tools", "tool_choice", "response_format", "logit_bias", "max_tokens", "logprobs"]
    assert chat(**dict.fromkeys(names)).sampling == chat().sampling


def test_a_prompt_may_be_all_that_is_wanted_if_it_is_echoed():
    call = completion(max_tokens=0, echo=True)
    assert (call.max_tokens, call.prompt_only) == (1, True)
    assert not completion(max_tokens=1, echo=True).prompt_only
    assert refusal(completion, max_tokens=0) == (400, "invalid_value", "max_tokens")
    assert refusal(chat, max_tokens=0) == (400, "invalid_value", "max_tokens")


@pytest.mark.parametrize("parse", [chat, completion])
def test_logprobs_of_the_prompt_have_a_bound_and_no_place_in_a_stream(parse):
    assert parse(prompt_logprobs=0).sampling.prompt_logprobs == 0
    assert parse(prompt_logprobs=20).prompt_logprobs
    for value in (-1, 21):
        assert refusal(parse, prompt_logprobs=value)[1:] == ("invalid_value", "prompt_logprobs")
    assert refusal(parse, prompt_logprobs=1, stream=True)[2] == "prompt_logprobs"


def test_echo_with_logprobs_asks_for_those_of_the_prompt_without_showing_them_apart():
    call = completion(echo=True, logprobs=3)
    assert (call.sampling.logprobs, call.sampling.prompt_logprobs) == (3, 3)
    assert not call.prompt_logprobs
    assert completion(echo=True, logprobs=3, prompt_logprobs=5).sampling.prompt_logprobs == 5
    assert completion(echo=True).sampling.prompt_logprobs is None


@pytest.mark.parametrize("value", [-0.1, 1.1, "0.5", True])
def test_min_p_is_a_part_of_one(value):
    assert chat(min_p=0.05).sampling.min_p == 0.05
    assert refusal(chat, min_p=value)[2] == "min_p"


def test_both_names_of_the_token_limit_work_unless_they_differ():
    assert chat(max_completion_tokens=5).max_tokens == 5
    assert chat(max_completion_tokens=5, max_tokens=5).max_tokens == 5
    assert refusal(chat, max_completion_tokens=5, max_tokens=6) == (
        400,
        "invalid_value",
        "max_tokens",
    )


@pytest.mark.parametrize(("given", "found"), [("x", ("x",)), (["x", "y"], ("x", "y")), ([], ())])
def test_stop_is_a_text_or_a_list_of_texts(given, found):
    assert chat(stop=given).sampling.stop == found


def test_logprobs_of_both_apis():
    assert chat(logprobs=True).sampling.logprobs == 0
    assert chat(logprobs=True, top_logprobs=4).sampling.logprobs == 4
    assert completion(logprobs=3).sampling.logprobs == 3
    assert refusal(chat, top_logprobs=4)[2] == "top_logprobs"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ([1, 2],)),
        ([[1, 2], [3]], ([1, 2], [3])),
    ],
)
def test_the_four_shapes_of_a_prompt(prompt, prompts):
    assert completion(prompt=prompt).prompts == prompts


def test_unknown_fields_are_ignored_and_counted():
    assert chat(metadata={"a": 1}, colour="red", tools=None).ignored == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("chat_template", "{{ 1 }}"),
        ("chat_template_kwargs", {"x": 1}),
        ("prompt_embeds", "AAAA"),
        ("mm_processor_kwargs", {"x": 1}),
        ("kv_transfer_params", {"do_remote_decode": True}),
        ("cache_salt", "x"),
        ("guided_decoding_backend", "x"),
        ("priority", True),
        ("echo", True),
        ("reasoning_effort", "high"),
        ("use_beam_search", 1),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(field, value):
    assert refusal(chat, **{field: value}) == (400, "unsupported_parameter", field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", []),
        ("tool_choice", "none"),
        ("response_format", {"type": "text"}),
        ("logit_bias", {}),
        ("modalities", ["text"]),
        ("min_p", 0),
        ("store", False),
    ],
)
def test_a_known_parameter_that_asks_for_nothing_is_no_reason_to_refuse(field, value):
    assert chat(**{field: value}).ignored == 0


def test_what_completions_cannot_honour():
    assert refusal(completion, best_of=3)[1:] == ("unsupported_parameter", "best_of")
    assert completion(best_of=2, n=2).sampling.n == 2
    assert refusal(completion, suffix="x")[1:] == ("unsupported_parameter", "suffix")
    assert refusal(completion, tools=[{}])[1:] == ("unsupported_parameter", "tools")
    options = {"stream": True, "stream_options": {"continuous_usage_stats": True}}
    assert refusal(completion, **options)[2] == "stream_options.continuous_usage_stats"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"model": None}, "invalid_type", "model"),
        ({"model": ""}, "invalid_value", "model"),
        ({"model": "x" * 257}, "invalid_value", "model"),
        ({"max_tokens": -1}, "invalid_value", "max_tokens"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": "5"}, "invalid_type", "max_tokens"),
        ({"max_tokens": True}, "invalid_type", "max_tokens"),
        ({"max_tokens": 5.5}, "invalid_type", "max_tokens"),
        ({"max_tokens": 10**30}, "invalid_type", "max_tokens"),
        ({"n": 9}, "invalid_value", "n"),
        ({"n": 0}, "invalid_value", "n"),
        ({"temperature": -5}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"top_p": 0}, "invalid_value", "top_p"),
        ({"seed": 2**70}, "invalid_type", "seed"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "invalid_type",
            "stream_options.include_usage",
        ),
        ({"stop": 7}, "invalid_type", "stop"),
        ({"stop": [7]}, "invalid_type", "stop"),
        ({"stop": ["x"] * 17}, "invalid_value", "stop"),
        ({"stop": [""]}, "invalid_value", "stop"),
        ({"stop": "x" * 257}, "invalid_value", "stop"),
        ({"stop_token_ids": [1, "2"]}, "invalid_type", "stop_token_ids[1]"),
        ({"stop_token_ids": [-1]}, "invalid_value", "stop_token_ids[0]"),
        ({"min_tokens": 9, "max_tokens": 3}, "invalid_value", "min_tokens"),
        ({"user": 7}, "invalid_type", "user"),
    ],
)
def test_a_wrong_value_names_its_field(fields, code, param):
    for parse in (chat, completion):
        assert refusal(parse, **fields) == (400, code, param)


@pytest.mark.parametrize(
    "prompt", [None, 7, {}, [], [[]], ["a", 1], [1, "a"], [[1], "a"], [-1], [True], [1.5], [2**32]]
)
def test_a_prompt_of_no_known_shape_is_refused(prompt):
    assert refusal(completion, prompt=prompt) == (400, "invalid_type", "prompt")


def test_too_many_prompts_are_refused():
    assert refusal(completion, prompt=["x"] * 17) == (400, "invalid_value", "prompt")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"model": NaN}', "invalid_json"),
        (b'{"a": "\xff"}', "invalid_json"),
        (b'{"a": "\\ud800"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "invalid_json"),
        (b"[]", "invalid_type"),
        (b'"text"', "invalid_type"),
        (b"null", "invalid_type"),
    ],
)
def test_what_is_no_json_object_is_refused(body, code):
    for parse in (parse_chat, parse_completion):
        with pytest.raises(ApiError) as caught:
            parse(body)
        assert (caught.value.status, caught.value.code) == (400, code)


def test_missing_fields_are_named():
    for parse, param in ((parse_chat, "messages"), (parse_completion, "prompt")):
        with pytest.raises(ApiError) as caught:
            parse(b'{"model": "m"}')
        assert (caught.value.code, caught.value.param) == ("missing_required_parameter", param)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FIELDS = ["model", "messages", "prompt", "stop", "n", "stream", "tools", "logprobs", "seed", "echo"]
FIELDS += ["tool_choice", "response_format", "structured_outputs", "guided_json", "logit_bias"]


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), json_values))
def test_no_json_object_raises_anything_but_an_api_error(data):
    body = json.dumps(data).encode()
    for parse in (parse_chat, parse_completion):
        error = _error_of(parse, body)
        assert error is None or (400 <= error.status < 500 and "0x" not in error.message)


def _error_of(parse, body: bytes) -> ApiError | None:
    try:
        parse(body)
    except ApiError as error:
        return error
    return None
