"""vLLM's parsers of tool calls and reasoning, driven as its own server drives them in streams.

A parser is told one id at a time, with the text that became certain with it, so that what it says
is a function of the ids and a continuation can bring a new one to the state of the old. The names
that it makes up for calls are replaced by some that are the same in every attempt.

Where a function is demanded by name (or any is) vLLM makes that a constraint on the output, in the
parser's own format or as JSON; it does that here as well, and without any parser of tools.

``ChatCompletionRequest``, which the parsers want to see, is made once per job. It has no messages.
"""

import json
from collections.abc import Callable, Sequence
from hashlib import blake2s
from typing import Any, Final

from vllm.entrypoints.openai.chat_completion.protocol import (  # type: ignore[import-not-found]
    ChatCompletionRequest,
)
from vllm.parser import ParserManager  # type: ignore[import-not-found]
from vllm.parser.abstract_parser import DelegatingParser  # type: ignore[import-not-found]
from vllm.reasoning import ReasoningParserManager  # type: ignore[import-not-found]
from vllm.sampling_params import StructuredOutputsParams  # type: ignore[import-not-found]
from vllm.tool_parsers import ToolParser, ToolParserManager  # type: ignore[import-not-found]
from vllm.tool_parsers.tool_strict_level import (  # type: ignore[import-not-found]
    ToolStrictLevel,
)

from components.host.errors import CannotStart
from components.worker.engine import Job
from components.worker.vllm.backend import BadParameter, Constraint, Delta, Parser, Text
from components.worker.vllm.text import TextOfChoice
from schemas.body import OutputParsing, StructuredOutput
from schemas.fleet import Feature

#: How the random names of calls begin in vLLM.
RANDOM_ID: Final = "chatcmpl-tool-"
#: OpenAI's names of what asks for a constraint.
PARAMS: Final = {"json": "response_format", "json_object": "response_format"}


def check_names(tool_parser: str, reasoning_parser: str) -> None:
    """Raises ``CannotStart`` for a name that vLLM does not know."""
    for setting, name, manager in (
        ("tool_parser", tool_parser, ToolParserManager),
        ("reasoning_parser", reasoning_parser, ReasoningParserManager),
    ):
        known = manager.list_registered()
        if name and name not in known:
            raise CannotStart(f"worker.{setting}: {name!r} is none of {', '.join(known)}")


class Parsing:
    """What one engine reads its outputs with. ``on_odd`` hears when a parser raises."""

    def __init__(
        self,
        llm: Any,
        tool_parser: str,
        reasoning_parser: str,
        on_odd: Callable[[BaseException], None],
        tool_strict_level: str = "auto",
    ) -> None:
        """Raises ``CannotStart`` where the tokenizer lacks what the parsers look for."""
        self._tokenizer = llm.get_tokenizer()
        self._model = llm.model_config
        self._tool_parser, self._reasoning_parser = tool_parser, reasoning_parser
        self._on_odd = on_odd
        self._strict_level = ToolStrictLevel.from_name(tool_strict_level)
        try:
            self._apart = self._parser_class(reasoning_parser)
            self._together = self._parser_class("")
        except (TypeError, ValueError, KeyError) as error:
            raise CannotStart(f"vLLM's parsers: {error}") from error

    def _parser_class(self, reasoning_parser: str) -> Any:
        return ParserManager.get_parser(
            tool_parser_name=self._tool_parser or None,
            reasoning_parser_name=reasoning_parser or None,
            enable_auto_tools=bool(self._tool_parser),
            model_name=self._model.model,
            is_harmony=self._model.hf_config.model_type == "gpt_oss",
            tokenizer=self._tokenizer,
        )

    @property
    def features(self) -> tuple[Feature, ...]:
        """What a card says of it."""
        tools: tuple[Feature, ...] = ("tools",) if self._tool_parser else ()
        return (*tools, "reasoning") if self._reasoning_parser else tools

    def reading(self, job: Job) -> "ReadingOfJob":
        """See ``Backend.reading``."""
        parsing = job.sampling.parsing
        if parsing is None:
            return ReadingOfJob(self._tokenizer, job, self._constraint(job))
        maker = self._maker(parsing)
        if maker is None:
            return ReadingOfJob(self._tokenizer, job, self._constraint(job))
        return self._parsed(job, parsing, maker)

    def _maker(self, parsing: OutputParsing) -> Any:
        """The class for such outputs; None where all of them are content."""
        maker = self._apart if parsing.reasoning else self._together
        is_forced = parsing.tools and parsing.tool_choice not in {"auto", "none"}
        if is_forced and not self._tool_parser:
            return _with_forced_tools(maker)
        return maker

    def _parsed(self, job: Job, parsing: OutputParsing, maker: Any) -> "ReadingOfJob":
        request = _request(parsing)
        structured = job.sampling.structured
        wanted = request.structured_outputs = params_of(structured) if structured else None
        parser = maker(self._tokenizer, request.tools, model_config=self._model)
        parser.tool_strict_level = self._strict_level
        if maker.always_adjust_request or maker.reasoning_parser_cls or parsing.tools:
            request = _adjusted(parser, request)
        found = request.extract_structured_outputs()
        constraint = None
        if found is not None:
            ended = request.resolve_reasoning_ended(parser, list(job.prompt))
            is_asked_for = structured is not None and found is wanted
            param = param_of(structured) if structured and is_asked_for else "tools"
            constraint = _constraint_of(found, param, reasoning_ended=ended)

        def make(choice: int) -> Parser:
            parser = maker(self._tokenizer, request.tools, model_config=self._model)
            return ParserOfChoice(parser, request, job, choice, self._on_odd)

        with_specials = not request.skip_special_tokens
        return ReadingOfJob(self._tokenizer, job, constraint, make, with_specials=with_specials)

    def _constraint(self, job: Job) -> Constraint | None:
        structured = job.sampling.structured
        if structured is None:
            return None
        ended = None
        if self._reasoning_parser:
            parser = self._apart(self._tokenizer, None, model_config=self._model)
            ended = parser.is_reasoning_end(list(job.prompt))
        return Constraint(structured.kind, structured.value, param_of(structured), ended)


def _with_forced_tools(maker: Any) -> Any:
    """A class that reads calls as JSON, which the constraint has made of them."""

    class Forced(DelegatingParser):  # type: ignore[misc]
        reasoning_parser_cls = maker.reasoning_parser_cls if maker else None
        tool_parser_cls = ToolParser

    return Forced


def _request(parsing: OutputParsing) -> Any:
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": ""}], "stream": True}
    try:
        if parsing.tools:
            named = parsing.tool_choice.removeprefix("=")
            fields["tools"] = json.loads(parsing.tools)
            fields["tool_choice"] = (
                {"type": "function", "function": {"name": named}}
                if parsing.tool_choice.startswith("=")
                else parsing.tool_choice
            )
            fields["parallel_tool_calls"] = parsing.parallel_tool_calls
        return ChatCompletionRequest(**fields)
    except Exception as error:
        # Whatever the reason: a list of tools that vLLM's own type does not take.
        raise BadParameter("tools", type(error).__name__) from error


def _adjusted(parser: Any, request: Any) -> Any:
    try:
        return parser.adjust_request(request)
    except Exception as error:
        raise BadParameter("tools", type(error).__name__) from error


def param_of(structured: StructuredOutput) -> str:
    """OpenAI's name of what asks for it."""
    return PARAMS.get(structured.kind, "structured_outputs")


def params_of(wanted: StructuredOutput | Constraint) -> Any:
    """As vLLM is told. Raises ``BadParameter`` for a choice that is no list of texts."""
    match wanted.kind:
        case "json_object":
            return StructuredOutputsParams(json_object=True)
        case "choice":
            return StructuredOutputsParams(choice=_texts(wanted))
        case kind:
            return StructuredOutputsParams(**{kind: wanted.value})


def _texts(wanted: StructuredOutput | Constraint) -> list[str]:
    try:
        texts = json.loads(wanted.value)
    except ValueError:
        texts = None
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise BadParameter("structured_outputs", "a choice is a list of texts")
    return texts


def _constraint_of(params: Any, param: str, *, reasoning_ended: bool | None) -> Constraint:
    if params.json_object:
        return Constraint("json_object", "", param, reasoning_ended)
    for kind in ("json", "regex", "choice", "grammar", "structural_tag"):
        value = getattr(params, kind)
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            return Constraint(kind, text, param, reasoning_ended)
    raise BadParameter(param, "no constraint")


class ReadingOfJob:
    """See ``Reading`` in ``backend.py``."""

    def __init__(
        self,
        tokenizer: Any,
        job: Job,
        constraint: Constraint | None,
        make_parser: Callable[[int], Parser] | None = None,
        *,
        with_specials: bool = False,
    ) -> None:
        self.constraint = constraint
        self._tokenizer, self._job = tokenizer, job
        self._make_parser = make_parser
        self._with_specials = with_specials

    def text(self) -> Text:
        job = self._job
        specials = self._with_specials
        return TextOfChoice(self._tokenizer, job.prompt, job.sampling, with_specials=specials)

    def parser(self, choice: int) -> Parser | None:
        return None if self._make_parser is None else self._make_parser(choice)


class ParserOfChoice:
    """See ``Parser`` in ``backend.py``. After an error the rest is content."""

    def __init__(
        self,
        parser: Any,
        request: Any,
        job: Job,
        choice: int,
        on_odd: Callable[[BaseException], None],
    ) -> None:
        self._parser, self._request = parser, request
        self._prompt = list(job.prompt)
        self._name = f"{job.request_id}/{choice}"
        self._on_odd = on_odd
        self._is_named = not isinstance(request.tool_choice, str | None)
        self._is_single = request.parallel_tool_calls is False
        self._is_broken = False
        self._has_called = False

    @property
    def has_called(self) -> bool:
        return self._has_called and not self._is_named

    def take(self, token_ids: Sequence[int], text: str, *, finished: bool) -> list[Delta]:
        if not self._is_broken:
            try:
                return self._parse(token_ids, text, finished=finished)
            except Exception as error:  # noqa: BLE001  (parsers are many, and outputs are odd)
                self._is_broken = True
                self._on_odd(error)
        return [{"content": text}] if text else []

    def _parse(self, token_ids: Sequence[int], text: str, *, finished: bool) -> list[Delta]:
        said = self._parser.parse_delta(
            text, list(token_ids), self._request, self._prompt, finished=finished
        )
        if said is None:
            return []
        delta: Delta = {}
        if said.content:
            delta["content"] = said.content
        if said.reasoning:
            delta["reasoning"] = said.reasoning
        if said.tool_calls:
            self._has_called = True
            calls = [self._call(call) for call in said.tool_calls if self._may_say(call)]
            if calls:
                delta["tool_calls"] = calls
        return [delta] if delta else []

    def _may_say(self, call: Any) -> bool:
        return not self._is_single or call.index == 0

    def _call(self, call: Any) -> Delta:
        said: Delta = {"index": call.index}
        if call.id:
            said["id"] = self._id(call.id, call.index)
            said["type"] = call.type or "function"
        function: dict[str, str] = {}
        if call.function is not None and call.function.name:
            function["name"] = call.function.name
        if call.function is not None and call.function.arguments:
            function["arguments"] = call.function.arguments
        said["function"] = function
        return said

    def _id(self, given: str, index: int) -> str:
        """One that every attempt gives the same call."""
        if not given.startswith(RANDOM_ID):
            return given
        name = f"{self._name}/{index}".encode()
        return RANDOM_ID + blake2s(name, digest_size=16).hexdigest()
