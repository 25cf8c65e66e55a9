"""What the output must look like: four dialects of it, one meaning, and the bounds of all."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.domain.bodies import Body, decode_body, encode_body
from schemas.body import CONSTRAINT_CHARS_MAX, StructuredOutput
from tests.unit.gateway.calls import at, chat, completion, refusal

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
TAG = {"type": "structural_tag", "structures": [], "triggers": []}


def of_schema(**changes: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA} | changes}


def wanted(**fields: Any) -> tuple[str, str] | None:
    """The kind of constraint and its value; the same for both calls."""
    found = [parse(**fields).sampling.structured for parse in (chat, completion)]
    assert found[0] == found[1]
    return None if found[0] is None else (found[0].kind, found[0].value)


def test_a_text_is_no_constraint():
    assert wanted(response_format={"type": "text"}) is None
    assert wanted(guided_json_object=False) is None


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object"),
        ({"structured_outputs": {"json_object": True}}, "json_object"),
        ({"guided_json_object": True}, "json_object"),
    ],
)
def test_any_json_object(fields, kind):
    assert wanted(**fields) == (kind, "")


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": of_schema()},
        {"response_format": of_schema(strict=True, description="d")},
        {"structured_outputs": {"json": SCHEMA, "regex": None}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
    ],
)
def test_a_schema_keeps_the_order_of_its_keys(fields):
    found = wanted(**fields)
    assert found is not None
    assert found[0] == "json"
    # The order in a schema is the order in which a model writes.
    assert json.dumps(json.loads(found[1])) == json.dumps(SCHEMA)


@pytest.mark.parametrize("dialect", ["structured_outputs", "guided"])
@pytest.mark.parametrize(
    ("kind", "value", "found"),
    [
        ("regex", "[ab]+", "[ab]+"),
        ("grammar", 'root ::= "a"', 'root ::= "a"'),
        ("choice", ["yes", "nö"], '["yes","nö"]'),
    ],
)
def test_the_other_kinds_of_vllm(dialect, kind, value, found):
    fields = {f"guided_{kind}": value} if dialect == "guided" else {dialect: {kind: value}}
    assert wanted(**fields) == (kind, found)


def test_a_structural_tag_goes_on_as_json():
    for fields in (
        {"response_format": TAG},
        {"structured_outputs": {"structural_tag": TAG}},
        {"structured_outputs": {"structural_tag": json.dumps(TAG)}},
    ):
        found = wanted(**fields)
        assert found is not None
        assert (found[0], json.loads(found[1])) == ("structural_tag", TAG)


def test_a_constraint_reaches_the_worker_as_it_was_taken():
    sampling = chat(response_format=of_schema(), logit_bias={"5": -1}).sampling
    assert decode_body(encode_body(Body((1,), sampling))).sampling == sampling


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"response_format": "json"}, "invalid_type", "response_format"),
        ({"response_format": {}}, "missing_required_parameter", "response_format.type"),
        ({"response_format": {"type": "xml"}}, "unsupported_parameter", "response_format.type"),
        (
            {"response_format": {"type": "json_schema"}},
            "missing_required_parameter",
            "response_format.json_schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": []}},
            "invalid_type",
            "response_format.json_schema",
        ),
        (
            {"response_format": of_schema(name="a b")},
            "invalid_value",
            "response_format.json_schema.name",
        ),
        (
            {"response_format": of_schema(strict="yes")},
            "invalid_type",
            "response_format.json_schema.strict",
        ),
        (
            {"response_format": of_schema(schema=None)},
            "missing_required_parameter",
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": of_schema(schema=[])},
            "invalid_type",
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": []}, "invalid_type", "structured_outputs"),
        ({"structured_outputs": {}}, "invalid_value", "structured_outputs"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "invalid_value",
            "structured_outputs",
        ),
        (
            {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
            "unsupported_parameter",
            "structured_outputs.whitespace_pattern",
        ),
        ({"structured_outputs": {"regex": 7}}, "invalid_type", "structured_outputs.regex"),
        ({"guided_regex": ""}, "invalid_value", "guided_regex"),
        ({"guided_grammar": "x" * 65_537}, "invalid_value", "guided_grammar"),
        ({"guided_json": "{"}, "invalid_value", "guided_json"),
        ({"guided_json": "[]"}, "invalid_type", "guided_json"),
        ({"guided_json": {"x": "y" * 65_536}}, "invalid_value", "guided_json"),
        ({"guided_choice": []}, "invalid_value", "guided_choice"),
        ({"guided_choice": ["a", ""]}, "invalid_type", "guided_choice"),
        ({"guided_choice": ["a"] * 1025}, "invalid_value", "guided_choice"),
        ({"guided_json_object": "yes"}, "invalid_type", "guided_json_object"),
        (
            {"guided_regex": "a", "response_format": {"type": "json_object"}},
            "invalid_value",
            "guided_regex",
        ),
    ],
)
def test_a_wrong_constraint_is_refused_by_name(fields, code, param):
    for parse in (chat, completion):
        assert refusal(parse, **fields) == (400, code, param)


def test_a_constraint_that_is_nested_too_deeply_is_refused():
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"items": deep}
    assert refusal(chat, guided_json=deep) == (400, "invalid_value", "guided_json")


@given(
    st.dictionaries(
        st.integers(0, 2**32 - 1).map(str),
        st.floats(-100, 100) | st.integers(-100, 100),
        max_size=20,
    )
)
def test_a_bias_is_kept_for_each_token(bias):
    found = chat(logit_bias=bias).sampling.logit_bias
    assert dict(found) == {int(token): value for token, value in bias.items()}


@pytest.mark.parametrize(
    ("bias", "code"),
    [
        ([5], "invalid_type"),
        ({"a": 1}, "invalid_value"),
        ({"-1": 1}, "invalid_value"),
        ({"4294967296": 1}, "invalid_value"),
        ({"\u0661": 1}, "invalid_value"),
        ({"5": "1"}, "invalid_type"),
        ({"5": True}, "invalid_type"),
        ({"5": 100.5}, "invalid_value"),
        ({"5": -101}, "invalid_value"),
        ({str(i): 1 for i in range(1025)}, "invalid_value"),
    ],
)
def test_a_wrong_bias_is_refused(bias, code):
    for parse in (chat, completion):
        assert refusal(parse, logit_bias=bias) == (400, code, "logit_bias")


def test_a_bias_may_have_as_many_entries_as_an_engine_takes():
    assert len(chat(logit_bias={str(i): 1 for i in range(1024)}).sampling.logit_bias) == 1024


@given(st.text(max_size=30))
def test_any_regular_expression_is_the_engines_to_judge(pattern):
    if pattern:
        expected = StructuredOutput(kind="regex", value=pattern)
        assert at(chat(guided_regex=pattern), "structured_outputs").sampling.structured == expected
    assert len(pattern) < CONSTRAINT_CHARS_MAX
