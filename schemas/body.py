"""The content of a request, kept off the control path and out of the history.

A body is one msgpack array, opaque to scheduler and router:

    [layout version, prompt token ids, emitted, sampling]

- prompt token ids: uint32 little-endian, packed in bytes
- emitted: one entry per choice that already has tokens, ``[choice, token ids packed]``, with a
  third value ``true`` for a choice that is finished
- sampling: a map of ``SamplingParameters``; keys that equal the default are left out
"""

from typing import ClassVar

from pydantic import Field

from schemas.message import Message, Part

BODY_LAYOUT = 1
#: Bodies up to this size ride inside control messages.
BODY_INLINE_BYTES_MAX = 8192


class SamplingParameters(Part):
    """How tokens are chosen and when to stop; names and meaning as in vLLM and OpenAI."""

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
