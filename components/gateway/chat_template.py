"""A model's chat template: checked messages in, the text of the prompt out. Pure but for the date.

Templates run the way Hugging Face's libraries run them (same whitespace rules, same helpers), and
messages are handed over the way vLLM hands them: content as one text or as a list of parts
(``content_format``), the arguments of earlier tool calls as an object, ``developer`` as ``system``
where the template does not know it. Jinja's sandbox holds: the author of a template is not ours.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from components.gateway.content_format import takes_parts
from components.gateway.errors import invalid, shown

#: For models that publish no template: roles and texts, a line each.
PLAIN_TEMPLATE: Final = (
    "{% if tools %}tools: {{ tools | tojson }}{{ '\\n' }}{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{% if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif %}"
    "{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
#: What expressions in a template may raise, besides Jinja's own errors.
_FAULTS: Final = (
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)

Messages = Sequence[Mapping[str, Any]]


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
class ChatTemplate:
    """One template, compiled."""

    _compiled: jinja2.Template
    _takes_parts: bool
    _knows_developers: bool

    @classmethod
    def of(cls, source: str) -> "ChatTemplate":
        """From Jinja source; empty: `PLAIN_TEMPLATE`. Raises ``jinja2.TemplateError``."""
        source = source or PLAIN_TEMPLATE
        environment = _environment()
        return cls(
            environment.from_string(source),
            takes_parts(environment.parse(source)),
            '"developer"' in source or "'developer'" in source,
        )

    def text(self, messages: Messages, tools: Messages | None, names: Mapping[str, str]) -> str:
        """The prompt of a chat; raises ``ApiError`` when the template refuses the messages.

        ``names`` are what the template calls its special tokens.
        """
        try:
            return self._compiled.render(
                messages=self._handed_over(messages),
                add_generation_prompt=True,
                tools=None if tools is None else list(tools),
                documents=None,
                **names,
            )
        except TemplateRefused as error:
            said = shown(str(error))
            raise invalid("messages", f"The chat template does not allow this: {said}") from None
        except (jinja2.TemplateError, *_FAULTS):
            # The template expects other messages than these.
            raise invalid("messages", "The chat template cannot render these messages") from None

    def _handed_over(self, messages: Messages) -> list[dict[str, Any]]:
        """Messages of ``openai_messages``, as this template wants them."""
        talk = [_turn(message, self._content(message)) for message in messages]
        if self._knows_developers or all(turn["role"] != "developer" for turn in talk):
            return talk
        return _with_one_system(talk)

    def _content(self, message: Mapping[str, Any]) -> Any:
        """Always a list of parts for templates that go through them; for tools always a text."""
        content = message["content"]
        if content is None:
            content = []
        if isinstance(content, list):
            if self._takes_parts and message["role"] != "tool":
                return content
            return _joined(content)
        if self._takes_parts and message["role"] != "tool":
            return [{"type": "text", "text": content}]
        return content


def _turn(message: Mapping[str, Any], content: Any) -> dict[str, Any]:
    turn = {**message, "content": content}
    if "tool_calls" in turn:
        turn["tool_calls"] = [_with_object(call) for call in turn["tool_calls"]]
    if "reasoning" in turn:
        turn["reasoning_content"] = turn["reasoning"]  # its older name, which templates use
    if turn["role"] == "developer":
        turn["tools"] = None
    return turn


def _with_object(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call whose arguments are an object; what is none becomes the empty one.

    It lies in the past: to refuse it would end a conversation that the model itself has spoilt.
    """
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = {}
    if not isinstance(arguments, dict):
        arguments = {}
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _joined(parts: Messages) -> str:
    return "\n".join(part["text"] for part in parts)


def _with_one_system(talk: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Developers become the system, and all of the system one message in front.

    Templates without the newer role often take a system message in the first place only.
    """
    for turn in talk:
        if turn["role"] == "developer":
            turn["role"] = "system"
            del turn["tools"]
    system = [turn for turn in talk if turn["role"] == "system"]
    if len(system) == 1 and talk[0] is system[0]:
        return talk
    texts = [c if isinstance(c, str) else _joined(c) for c in (t["content"] for t in system)]
    merged = {"role": "system", "content": "\n\n".join(text for text in texts if text)}
    return [merged, *(turn for turn in talk if turn["role"] != "system")]
