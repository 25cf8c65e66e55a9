"""What an engine's parsers made of a stream: content, reasoning, tool calls. Pure.

Deltas come as in ``schemas.frames``. Those that leave together are merged into one; all of a choice
merged are its message. Only keys that we know go on to the client.
"""

from collections.abc import Iterable, Mapping
from typing import Any

Delta = dict[str, Any]


def merged(deltas: Iterable[Mapping[str, Any]], *, reasoning: bool) -> Delta:
    """One delta that says the same; without ``reasoning`` when that is not to be shown.

    Keys without a value are left out. Raises TypeError, KeyError or AttributeError for what is no
    delta.
    """
    texts: dict[str, list[str]] = {"reasoning": [], "content": []}
    calls: dict[int, Delta] = {}
    for delta in deltas:
        for name, found in texts.items():
            if delta.get(name):
                found.append(delta[name])
        for piece in delta.get("tool_calls") or ():
            _add(calls, piece)
    whole: Delta = {name: "".join(found) for name, found in texts.items() if found}
    if not reasoning:
        whole.pop("reasoning", None)
    if calls:
        whole["tool_calls"] = list(calls.values())
    return whole


def _add(calls: dict[int, Delta], piece: Mapping[str, Any]) -> None:
    """Ids, types and names come once, arguments in pieces."""
    index = piece["index"]
    call = calls.setdefault(index, {"index": index})
    for name in ("id", "type"):
        if piece.get(name):
            call[name] = piece[name]
    function = piece.get("function")
    if not function:
        return
    known = call.setdefault("function", {})
    if function.get("name"):
        known["name"] = function["name"]
    if function.get("arguments") is not None:
        known["arguments"] = known.get("arguments", "") + function["arguments"]


def message(deltas: Iterable[Mapping[str, Any]], *, reasoning: bool) -> dict[str, Any]:
    """The message of an answer in one; ``content`` is null when there is none.

    ``reasoning`` is vLLM's field.
    """
    whole = merged(deltas, reasoning=reasoning)
    said = {"role": "assistant", "content": whole.get("content"), "refusal": None}
    if "tool_calls" in whole:
        calls = sorted(whole["tool_calls"], key=lambda call: int(call["index"]))
        said["tool_calls"] = [_call(call) for call in calls]
    if "reasoning" in whole:
        said["reasoning"] = whole["reasoning"]
    return said


def _call(call: Mapping[str, Any]) -> Delta:
    function = call["function"]
    return {
        "id": call["id"],
        "type": "function",
        "function": {"name": function["name"], "arguments": function.get("arguments", "")},
    }
