"""The exact bytes that clients get."""

import json
from typing import Any

import pytest

from components.gateway.errors import ApiError, of_end
from components.gateway.openai_requests import Api
from components.gateway.openai_responses import Echo, Head, Usage, dialect, error_event
from components.gateway.request import End, Request
from components.gateway.streams import Finish, Piece
from schemas.codes import RefusalCode
from tests.unit.gateway.yard import Yard

USAGE = Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=3)


def head(**changes: Any) -> Head:
    return Head("id-1", 7, "sim/words", **changes)


def piece(text: str = "héllo\n", **changes: Any) -> Piece:
    return Piece(
        **{"first_index": 3, "tokens": 2, "text": text, "logprobs": [], "finish": None, **changes}
    )


def events(data: bytes) -> list[tuple[str, Any]]:
    """Event id and content of each event."""
    found = []
    for event in data.decode().split("\n\n")[:-1]:
        *ids, line = event.split("\n")
        found.append(("".join(ids), json.loads(line.removeprefix("data: "))))
    return found


def test_a_piece_of_a_chat_is_these_bytes():
    assert (
        dialect("chat", head()).piece(1, piece())
        == (
            'id: 1:4\ndata: {"id":"id-1","object":"chat.completion.chunk","created":7,'
            '"model":"sim/words","choices":[{"index":1,"delta":{"content":"héllo\\n"},'
            '"logprobs":null,"finish_reason":null}]}\n\n'
        ).encode()
    )


def test_a_piece_of_a_completion_is_these_bytes():
    assert (
        dialect("completions", head(include_usage=True)).piece(0, piece())
        == (
            'id: 0:4\ndata: {"id":"id-1","object":"text_completion","created":7,'
            '"model":"sim/words","choices":[{"index":0,"text":"héllo\\n","logprobs":null,"finish_reason":null}],'
            '"usage":null}\n\n'
        ).encode()
    )


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_ids_without_text_make_no_event(api: Api):
    assert dialect(api, head()).piece(0, piece("")) == b""


def test_the_end_of_a_chat_is_an_event_of_its_own():
    text, end = events(dialect("chat", head()).piece(0, piece(finish=Finish("stop"))))
    assert text[1]["choices"][0]["finish_reason"] is None
    assert (end[0], end[1]["choices"][0]["finish_reason"]) == ("id: 0:4", "stop")
    assert end[1]["choices"][0]["delta"] == {}


def test_an_end_without_tokens_has_no_place_of_its_own():
    [(event_id, content)] = events(
        dialect("completions", head()).piece(0, piece("", tokens=0, finish=Finish("length")))
    )
    assert (event_id, content["choices"][0]["finish_reason"]) == ("", "length")


def test_a_chat_opens_with_the_role_and_a_completion_with_its_echo():
    [(_, opening)] = events(dialect("chat", head()).opening(2, piece()))
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert dialect("completions", head()).opening(0, piece()) == b""
    [(_, echo)] = events(
        dialect("completions", head(echoes={1: Echo("once ")})).opening(1, piece())
    )
    assert echo["choices"][0]["text"] == "once "


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_usage_comes_in_an_event_without_choices(api: Api):
    [(_, content)] = events(dialect(api, head(include_usage=True)).usage(USAGE))
    assert content["choices"] == []
    assert content["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


def test_offsets_of_logprobs_go_on_from_piece_to_piece_and_begin_behind_the_echo():
    chosen = [[[1, -0.5, "ab"], [9, -2.0, "x"]], [[2, -0.25, "c"]]]
    answers = dialect("completions", head(logprobs=True, echoes={0: Echo("once ")}))
    first = events(answers.piece(0, piece("abc", logprobs=chosen)))[0][1]
    second = events(answers.piece(0, piece("d", logprobs=[[[3, -1.0, "d"]]])))[0][1]
    assert first["choices"][0]["logprobs"] == {
        "tokens": ["ab", "c"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"x": -2.0}, {}],
        "text_offset": [5, 7],
    }
    assert second["choices"][0]["logprobs"]["text_offset"] == [8]


def test_logprobs_of_a_chat_carry_bytes():
    [(_, content)] = events(
        dialect("chat", head(logprobs=True)).piece(0, piece(logprobs=[[[1, -0.5, "é"]]]))
    )
    [token] = content["choices"][0]["logprobs"]["content"]
    assert token == {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": []}


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_whole_answer_has_every_choice_and_its_end(api: Api):
    pieces = [piece("a", finish=Finish("stop")), piece("b", finish=Finish("length"))]
    content = json.loads(dialect(api, head()).whole(pieces, USAGE))
    assert [c["index"] for c in content["choices"]] == [0, 1]
    assert [c["finish_reason"] for c in content["choices"]] == ["stop", "length"]
    texts = [
        c["text"] if api == "completions" else c["message"]["content"] for c in content["choices"]
    ]
    assert texts == ["a", "b"]
    assert content["usage"]["total_tokens"] == 7


def test_an_error_in_a_stream_has_the_same_shape_as_one_with_a_status():
    error = ApiError(504, "deadline_exceeded", "too late", "timeout_error")
    assert events(error_event(error))[0][1] == json.loads(error.body) == error.content


CODES = RefusalCode.__args__  # type: ignore[attr-defined]  # a Literal's values


@pytest.mark.parametrize("code", CODES)
def test_every_way_to_end_has_a_status_and_a_text_of_ours(code: RefusalCode):
    request: Request = Yard().fleet().accept()
    error = of_end(End(request, code, "detail from inside", retry_after_ms=1500))
    assert 400 <= error.status < 600
    assert "inside" not in error.message
    assert (b"retry-after", b"2") in error.headers
