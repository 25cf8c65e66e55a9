"""What the output must look like, and which tokens are to be likelier: four dialects, one meaning.

OpenAI's ``response_format``, vLLM's ``structured_outputs`` and its older ``guided_*`` fields all
become one `StructuredOutput`. Whether an engine can compile a schema or a grammar is its own word;
here is only what must hold for any.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from components.gateway.errors import invalid, unsupported
from components.gateway.openai_fields import TOKEN_ID_MAX, Fields, missing
from schemas.body import CONSTRAINT_CHARS_MAX, StructuredOutput

BIASES_MAX: Final = 1024
BIAS_MAX: Final = 100
CHOICES_MAX: Final = 1024

_SCHEMA_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOKEN_ID: Final = re.compile(r"[0-9]{1,10}")
_KINDS: Final = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_GUIDED: Final = ("json", "regex", "choice", "grammar", "json_object")
#: Other members of ``structured_outputs``, with the values besides null that ask for nothing.
_OPTIONS: Final[Mapping[str, tuple[Any, ...]]] = {
    "disable_any_whitespace": (False,),
    "disable_additional_properties": (False,),
    "whitespace_pattern": (),
}


def checked_constraint(fields: Fields) -> tuple[StructuredOutput, str] | None:
    """The constraint and the field that it came in. Raises ``ApiError``, for a second one too."""
    found = [
        (made, param)
        for param, made in (
            ("response_format", _of_response_format(fields.response_format)),
            ("structured_outputs", _of_structured_outputs(fields.structured_outputs)),
            *((f"guided_{kind}", _of_guided(fields, kind)) for kind in _GUIDED),
        )
        if made is not None
    ]
    if len(found) > 1:
        first, second = found[0][1], found[1][1]
        raise invalid(second, f"'{second}' and '{first}' both constrain the output: send one")
    return found[0] if found else None


def _of_response_format(wanted: Any) -> StructuredOutput | None:
    param = "response_format"
    if wanted is None:
        return None
    if not isinstance(wanted, dict):
        raise invalid(param, f"'{param}' must be an object", "invalid_type")
    match wanted.get("type"):
        case None:
            raise missing(f"{param}.type")
        case "text":
            return None
        case "json_object":
            return StructuredOutput(kind="json_object")
        case "json_schema":
            return StructuredOutput(kind="json", value=_of_schema(wanted.get("json_schema")))
        case "structural_tag":
            return StructuredOutput(kind="structural_tag", value=_as_text(param, wanted))
        case _:
            raise unsupported(f"{param}.type")


def _of_schema(described: Any) -> str:
    """The schema inside OpenAI's ``json_schema``; one that is not ``strict`` is kept to as well."""
    param = "response_format.json_schema"
    if described is None:
        raise missing(param)
    if not isinstance(described, dict):
        raise invalid(param, f"'{param}' must be an object", "invalid_type")
    name = described.get("name")
    if not isinstance(name, str) or not _SCHEMA_NAME.fullmatch(name):
        what = f"'{param}.name' must be 1 to 64 letters, digits, '_' or '-'"
        raise invalid(f"{param}.name", what)
    if not isinstance(described.get("strict"), bool | None):
        what = f"'{param}.strict' must be true or false"
        raise invalid(f"{param}.strict", what, "invalid_type")
    if described.get("schema") is None:
        raise missing(f"{param}.schema")
    return _json(f"{param}.schema", described["schema"])


def _of_structured_outputs(wanted: Any) -> StructuredOutput | None:
    param = "structured_outputs"
    if wanted is None:
        return None
    if not isinstance(wanted, dict):
        raise invalid(param, f"'{param}' must be an object", "invalid_type")
    for name, neutral in _OPTIONS.items():
        if wanted.get(name) is not None and wanted[name] not in neutral:
            raise unsupported(f"{param}.{name}")
    kinds = [kind for kind in _KINDS if wanted.get(kind) is not None]
    if len(kinds) != 1:
        raise invalid(param, f"'{param}' needs exactly one of {', '.join(_KINDS)}")
    return _constraint(f"{param}.{kinds[0]}", kinds[0], wanted[kinds[0]])


def _of_guided(fields: Fields, kind: str) -> StructuredOutput | None:
    value = getattr(fields, f"guided_{kind}")
    return None if value is None else _constraint(f"guided_{kind}", kind, value)


def _constraint(param: str, kind: str, value: Any) -> StructuredOutput | None:
    match kind:
        case "json":
            return StructuredOutput(kind="json", value=_json(param, value))
        case "choice":
            return StructuredOutput(kind="choice", value=_choices(param, value))
        case "json_object":
            if not isinstance(value, bool):
                raise invalid(param, f"'{param}' must be true or false", "invalid_type")
            return StructuredOutput(kind="json_object") if value else None
        case "structural_tag":
            return StructuredOutput(kind="structural_tag", value=_json(param, value))
        case "regex":
            return StructuredOutput(kind="regex", value=_text(param, value))
        case _:
            return StructuredOutput(kind="grammar", value=_text(param, value))


def _text(param: str, value: Any) -> str:
    if not isinstance(value, str):
        raise invalid(param, f"'{param}' must be a string", "invalid_type")
    if not 0 < len(value) <= CONSTRAINT_CHARS_MAX:
        raise invalid(param, f"'{param}' must have 1 to {CONSTRAINT_CHARS_MAX} characters")
    return value


def _json(param: str, value: Any) -> str:
    """A JSON object, given as such or as its text."""
    if isinstance(value, str):
        try:
            given, value = _text(param, value), orjson.loads(value)
        except orjson.JSONDecodeError:
            raise invalid(param, f"'{param}' is not valid JSON") from None
        if isinstance(value, dict):
            return given
    if not isinstance(value, dict):
        raise invalid(param, f"'{param}' must be an object", "invalid_type")
    return _as_text(param, value)


def _choices(param: str, value: Any) -> str:
    good = isinstance(value, list) and all(isinstance(v, str) and v for v in value)
    if not good or not 0 < len(value) <= CHOICES_MAX:
        what = f"'{param}' must be a list of 1 to {CHOICES_MAX} texts that are not empty"
        raise invalid(param, what, "invalid_value" if good else "invalid_type")
    return _as_text(param, value)


def _as_text(param: str, value: Any) -> str:
    try:
        text = orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        raise invalid(param, f"'{param}' is nested too deeply") from None
    if len(text) > CONSTRAINT_CHARS_MAX:
        what = f"'{param}' has more than {CONSTRAINT_CHARS_MAX} characters of JSON"
        raise invalid(param, what)
    return text


def checked_bias(bias: Any) -> tuple[tuple[int, float], ...]:
    """From OpenAI's map of token id (as text) to bias. Raises ``ApiError``."""
    param = "logit_bias"
    if bias is None:
        return ()
    if not isinstance(bias, dict):
        raise invalid(param, f"'{param}' must be an object", "invalid_type")
    if len(bias) > BIASES_MAX:
        raise invalid(param, f"'{param}' has more than {BIASES_MAX} entries")
    return tuple(_bias(param, token, value) for token, value in bias.items())


def _bias(param: str, token: str, value: Any) -> tuple[int, float]:
    if not _TOKEN_ID.fullmatch(token) or int(token) > TOKEN_ID_MAX:
        raise invalid(param, f"the keys of '{param}' must be token ids")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(param, f"the values of '{param}' must be numbers", "invalid_type")
    if not -BIAS_MAX <= value <= BIAS_MAX:
        raise invalid(param, f"the values of '{param}' go from -{BIAS_MAX} to {BIAS_MAX}")
    return int(token), float(value)
