"""One answer from the two of a pair, one server's figures from those of many. Pure.

Logprobs of the prompt come from prefill, which computed it, then what decode adds; everything that
was generated is decode's.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Final

#: Fields of ``meta_info`` that are lists over the prompt.
OF_PROMPT: Final = ("input_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs")
#: What load balancers in use answer for decode servers that say nothing of themselves.
NO_STATE: Final[Mapping[str, Any]] = {"last_gen_throughput": 0.0, "avg_spec_accept_length": None}


def merge_answers(prefill: Mapping[str, Any], decode: Mapping[str, Any]) -> dict[str, Any]:
    """Decode's answer, completed from prefill's; a chunk of a stream is an answer as well.

    A field is completed only where both are lists: one that decode leaves out was not asked for.
    """
    merged = dict(decode)
    for place in ("meta_info", "sglext"):
        first, second = prefill.get(place), decode.get(place)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            merged[place] = _merge_meta(first, second)
    return merged


def _merge_meta(prefill: Mapping[str, Any], decode: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(decode)
    for name in OF_PROMPT:
        first, second = prefill.get(name), decode.get(name)
        if isinstance(first, list) and isinstance(second, list):
            merged[name] = first + second
    experts = _merge_experts(prefill.get("routed_experts"), decode.get("routed_experts"))
    if experts is not None:
        merged["routed_experts"] = experts
    return merged


def _merge_experts(prefill: Any, decode: Any) -> str | None:
    """Base64 of a byte per token and layer: decode's begin where prefill's end."""
    if not (isinstance(prefill, str) and isinstance(decode, str)):
        return None
    try:
        first = base64.b64decode(prefill, validate=True)
        second = base64.b64decode(decode, validate=True)
    except binascii.Error:
        return None
    return base64.b64encode(first + second[len(first) :]).decode()


def merge_server_info(
    prefill: Sequence[Mapping[str, Any] | None], decode: Sequence[Mapping[str, Any] | None]
) -> dict[str, Any]:
    """``GET /get_server_info`` of the whole: None stands for a server that did not answer.

    ``internal_states`` are those of all decode servers, which generate.
    """
    prefills = [dict(info) for info in prefill if info is not None]
    decodes = [dict(info) for info in decode if info is not None]
    states = [state for info in decodes for state in _states(info)]
    return {
        "internal_states": states or [dict(NO_STATE)],
        "prefill": prefills,
        "decode": decodes,
    }


def _states(info: Mapping[str, Any]) -> list[Any]:
    states = info.get("internal_states")
    return states if isinstance(states, list) else []
