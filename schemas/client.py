"""What clients on NATS say and hear, as JSON: OpenAI's calls, and what else concerns one tenant.

A question is published with a reply subject under the client's own inbox,
``_INBOX_client.<tenant>.>``. A refusal is ``{"error": {"code", "message"}}`` and ends the matter.

A call with ``"stream": true`` is answered by many messages (``GenerationTold``), numbered from 0:
the first names the requests, the last is ``done``, and in silence an empty one comes now and then.
A call without is answered by one: OpenAI's own answer. These calls travel as JSON only.
"""

from typing import Any, ClassVar

from pydantic import ConfigDict, Field

from schemas.message import Message, Part
from schemas.past import ExplainRequestReply

#: Fields beyond those named here are OpenAI's too: the gateway knows them all.
_OPENAI = ConfigDict(extra="ignore", json_schema_extra={"additionalProperties": True})


class Refusal(Part):
    """Why a client does not get what it asked for. ``type`` and ``param`` are OpenAI's."""

    code: str
    message: str
    type: str | None = None
    param: str | None = None


class GenerationTold(Part):
    """One message of a streamed answer.

    ``n`` counts from 0 without gaps: a number that is missing was lost on its way. ``requests`` are
    the ids by which the fleet knows the call, one per prompt. ``chunks`` are those that SSE would
    carry. The last message is ``done``, with ``usage`` or with the ``error`` that ended it.
    """

    n: int
    requests: tuple[str, ...] = ()
    chunks: tuple[dict[str, Any], ...] = ()
    done: bool = False
    usage: dict[str, Any] | None = None
    error: Refusal | None = None


class CompleteChat(Message):
    """OpenAI's chat completion: the question is the body that HTTP would carry."""

    schema_id: ClassVar[str] = "chat.complete.v1"
    model_config = _OPENAI

    model: str
    messages: tuple[dict[str, Any], ...]
    stream: bool = False


class CompleteChatReply(GenerationTold, Message):
    """One message of a streamed chat."""

    schema_id: ClassVar[str] = "chat.complete_reply.v1"


class CompleteText(Message):
    """OpenAI's text completion; ``prompt`` is a text, token ids, or a list of either."""

    schema_id: ClassVar[str] = "text.complete.v1"
    model_config = _OPENAI

    model: str
    prompt: str | tuple[Any, ...]
    stream: bool = False


class CompleteTextReply(GenerationTold, Message):
    """One message of a streamed text completion."""

    schema_id: ClassVar[str] = "text.complete_reply.v1"


class CancelGeneration(Message):
    """End the answer that goes to this inbox. Every gateway hears it; who has it, answers."""

    schema_id: ClassVar[str] = "generation.cancel.v1"

    reply: str


class CancelGenerationReply(Message):
    """It is ended: nothing more will be said at ``reply``."""

    schema_id: ClassVar[str] = "generation.cancel_reply.v1"

    reply: str


class ExplainGeneration(Message):
    """Why did this request of the tenant go where it went, and where did its time go?"""

    schema_id: ClassVar[str] = "generation.explain.v1"

    request_id: str = Field(min_length=1, max_length=64)


class ExplainGenerationReply(ExplainRequestReply):
    """What the past knows of it; ``found`` False also for a request of somebody else."""

    schema_id: ClassVar[str] = "generation.explain_reply.v1"
