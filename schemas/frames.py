"""Token frames: the one payload that is paid per token, so it is a plain tuple and no message.

One frame leaves a worker per engine step and gateway, on ``yard.out.<gateway>.<worker>``:

    [FRAME_LAYOUT, worker epoch, frame seq, [entry, entry, ...]]        at most 64 entries

An entry is one stream's step:

    (request_id, attempt, choice, first_index, token_ids, text, extra, finish)

| place | name        | type        | meaning                                                     |
| ----- | ----------- | ----------- | ----------------------------------------------------------- |
| 0     | request_id  | str         |                                                             |
| 1     | attempt     | int         | a gateway drops what is lower than the last one it saw      |
| 2     | choice      | int         | 0 to n - 1                                                  |
| 3     | first_index | int         | index of the first id, counted over all attempts            |
| 4     | token_ids   | list of int | empty in a high-water entry                                 |
| 5     | text        | str         | what these ids add to the text; may lag behind them         |
| 6     | extra       | map or nil  | ``logprobs``, tool and reasoning deltas                     |
| 7     | finish      | list or nil | ``[finish reason, stop reason or nil, cached tokens]``      |

``extra`` is nil or a map of

| key             | value |
| --------------- | --------- |
| logprobs        | per id ``[[id, logprob, text] of the chosen token, then of the likeliest]`` |
| prompt_logprobs | the same per prompt token (nil for the first), with a choice's first entry |
| deltas          | what the engine's parsers made of these ids, in order; then ``text`` is raw |
| opaque          | true: the ids only count, so the stream is not continued elsewhere |

A delta is a map with any of ``content``, ``reasoning`` (texts) and ``tool_calls``, a list of
``{index, id, type, function: {name, arguments}}``: ``id``, ``type`` and ``name`` come once,
``arguments`` in pieces, as in OpenAI's streams.

A high-water entry has no ids, no finish, and ``first_index`` = the next index the worker will use:
it is sent for every live stream once a second, so that the loss of a tail is noticed.
Engines that give no token ids count chunks instead; their streams are not continued elsewhere.
"""

from typing import Any, Final

FRAME_LAYOUT: Final = 1
ENTRIES_MAX: Final = 64
HIGH_WATER_INTERVAL_S: Final = 1.0

#: ``(request_id, attempt, choice, first_index, token_ids, text, extra, finish)``
Entry = tuple[str, int, int, int, list[int], str, dict[str, Any] | None, list[Any] | None]

REQUEST_ID: Final = 0
ATTEMPT: Final = 1
CHOICE: Final = 2
FIRST_INDEX: Final = 3
TOKEN_IDS: Final = 4
TEXT: Final = 5
EXTRA: Final = 6
FINISH: Final = 7
