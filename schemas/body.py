"""The content of a request, kept off the control path and out of the history.

A body is one msgpack array, opaque to scheduler and router:

    [layout version, prompt token ids, emitted, sampling]

- prompt token ids: uint32 little-endian, packed in bytes
- emitted: one entry per choice that already has tokens, ``[choice, token ids packed]``, with a
  third value ``true`` for a choice that is finished
- sampling: a map of ``SamplingParameters``; keys that equal the default are left out
"""

from typing import ClassVar, Literal

from pydantic import Field

from schemas.message import Message, Part

BODY_LAYOUT = 1
#: Bodies up to this size ride inside control messages.
BODY_INLINE_BYTES_MAX = 8192


#: What a constraint or the tools of one request may weigh, as text.
CONSTRAINT_CHARS_MAX = 65_536
TOOLS_CHARS_MAX = 262_144


class StructuredOutput(Part):
    """What the output must look like. The engine's grammar compiler has the last word.

    ``value``: a JSON schema (``json``), a regular expression, a JSON list of texts (``choice``), a
    grammar in EBNF, or a structural tag as JSON; empty for ``json_object``.
    """

    kind: Literal["json", "json_object", "regex", "choice", "grammar", "structural_tag"]
    value: str = Field(default="", max_length=CONSTRAINT_CHARS_MAX)


class OutputParsing(Part):
    """What of the output is more than text: the worker runs the engine's own parsers.

    ``tools`` is OpenAI's list as JSON, empty for none. ``tool_choice`` is ``none``, ``auto``,
    ``required``, or the name of a function as ``=name``. ``reasoning``: keep it apart.
    """

    tools: str = Field(default="", max_length=TOOLS_CHARS_MAX)
    tool_choice: str = Field(default="auto", max_length=80)
    parallel_tool_calls: bool = True
    reasoning: bool = True


class SamplingParameters(Part):
    """How tokens are chosen and when to stop; names and meaning as in vLLM and OpenAI.

    ``prompt_logprobs`` asks for so many alternatives per prompt token. ``chat`` is the list of
    messages as JSON, for engines that render it themselves (``ModelCard.features``).
    """

    max_tokens: int = Field(default=16, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = 0
    seed: int | None = None
    n: int = Field(default=1, ge=1)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=20)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    logit_bias: tuple[tuple[int, float], ...] = ()
    prompt_logprobs: int | None = Field(default=None, ge=0, le=20)
    structured: StructuredOutput | None = None
    parsing: OutputParsing | None = None
    chat: str = ""


class FetchBody(Message):
    """A worker asks the gateway for a body that was too large for the control path."""

    schema_id: ClassVar[str] = "body.fetch.v1"

    request_id: str
    attempt: int


class FetchBodyReply(Message):
    """The body, or nil when the gateway no longer has it."""

    schema_id: ClassVar[str] = "body.fetch_reply.v1"

    request_id: str
    body: bytes | None


class BodyPublished(Message):
    """The body for whoever must run the request when its gateway is gone. Kept in INFLIGHT only.

    One message per request: an empty body overwrites the full one when the request ends.
    """

    schema_id: ClassVar[str] = "body.published.v1"

    request_id: str
    body: bytes
