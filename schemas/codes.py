"""The closed lists: why something was refused, how it ended, what state a thing is in.

A code is for programs and stays for ever; the sentence beside it is for people and may change.
"""

from typing import Literal

#: Why a request was not accepted, or ended without finishing. Reaches the client as ``error.code``.
RefusalCode = Literal[
    "model_not_found",
    "queue_full",
    "deadline_exceeded",
    "too_many_attempts",
    "prompt_too_long",
    "body_unavailable",
    "no_worker",
    "shutting_down",
    "engine_error",
    "cancelled",
    "invalid_request",
]

#: Why the router let a queued card wait. Shown by ``explain`` and on the queue's page.
WaitReason = Literal[
    "no_worker",
    "no_fresh_worker",
    "no_decode_room",
    "no_prefill_room",
    "not_owner",
    "warming_up",
]

#: Why a worker did not accept a dispatched attempt.
NackReason = Literal[
    "stale_epoch",
    "duplicate",
    "full",
    "draining",
    "body_unavailable",
    "unsupported",
    "too_long",
]

#: OpenAI's finish reasons, then ours.
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "abort", "error"]

#: What a worker agent's engine does with a request.
Phase = Literal["aggregated", "prefill", "decode"]

#: What an engine is for. An engine that is ``aggregated`` does both phases.
Role = Literal["aggregated", "prefill", "decode"]

#: What an engine does with the work it has.
EngineActivity = Literal["running", "paused", "asleep"]

#: What an operator may ask of an engine.
EngineAction = Literal[
    "pause", "resume", "sleep", "wake", "reset_prefix_cache", "drain", "accept", "set_role"
]

#: The life of a process.
ProcessState = Literal["starting", "ready", "degraded", "draining", "stopped"]

#: The steps of an attempt, as its worker reports them.
AttemptState = Literal["accepted", "refused", "first_token", "ended"]

#: The steps of a handoff that ended early.
ReleaseReason = Literal[
    "consumed",
    "lease_expired",
    "refused",
    "cancelled",
    "transfer_failed",
    "peer_lost",
    "superseded",
    "draining",
]

#: The steps of a request's life, in the order in which a healthy one takes them.
RequestStep = Literal[
    "accepted",
    "scheduled",
    "routed",
    "dispatched",
    "handed_over",
    "first_token",
    "finished",
    "refused",
    "interrupted",
    "cancelled",
]

ServiceClass = Literal["interactive", "standard", "batch"]
