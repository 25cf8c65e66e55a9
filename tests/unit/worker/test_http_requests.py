"""What a server is asked, and what its metrics and request ids say: pure, word for word."""

import pytest

from components.worker.openai_http.choices import Choice
from components.worker.openai_http.faults import RequestBad, ServerFault, fault_of
from components.worker.openai_http.metrics import ServerLoad, parse_metrics
from components.worker.openai_http.p2p_nccl import (
    P2pRequestId,
    is_address,
    parse_request_id,
    request_id_of,
)
from components.worker.openai_http.requests import as_prefill, request_of
from components.worker.openai_http.text import TextFromServer
from schemas.body import SamplingParameters, StructuredOutput

CHAT = '[{"role":"user","content":"hi"}]'


def asked(prompt=(1, 2, 3), dialect="vllm", *, as_ids=True, emitted=(), **sampling):
    """Path and body."""
    parameters = SamplingParameters(**{"max_tokens": 8, **sampling})
    whole = [*prompt, *emitted]
    left = parameters.max_tokens - len(emitted)
    choice = Choice(
        0, whole, parameters, TextFromServer(), len(emitted), left, parameters.min_tokens, 7,
        list(emitted), "salt",
    )  # fmt: skip
    return request_of("m", dialect, choice, as_ids=as_ids)


# Requests


def test_a_vllm_server_is_told_every_default_since_it_may_have_others():
    path, body = asked()
    assert path == "/v1/completions"
    assert body["prompt"] == [1, 2, 3]
    assert {n: body[n] for n in ("top_k", "min_p", "repetition_penalty", "ignore_eos")} == {
        "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False,
    }  # fmt: skip
    assert (body["seed"], body["cache_salt"], body["max_tokens"]) == (7, "salt", 8)


def test_any_other_server_is_told_what_openai_knows_only():
    _, body = asked(b"hi", "openai", as_ids=False, stop=("x",), presence_penalty=0.5)
    assert set(body) == {
        "model", "stream", "stream_options", "prompt", "max_tokens", "temperature", "top_p",
        "presence_penalty", "seed", "stop",
    }  # fmt: skip


def test_what_a_continuation_has_emitted_still_costs_its_penalties():
    _, body = asked(
        emitted=[5, 5, 6], presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((5, 1.0),)
    )
    assert body["logit_bias"] == {"5": 1.0 - 0.5 - 0.5, "6": -0.5 - 0.25}
    assert body["prompt"] == [1, 2, 3, 5, 5, 6]


def test_a_chat_with_logprobs_asks_for_them_as_chats_do():
    path, body = asked(b"x", "openai", as_ids=False, chat=CHAT, logprobs=3)
    assert path == "/v1/chat/completions"
    assert (body["logprobs"], body["top_logprobs"]) == (True, 3)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"prompt": b"\xff", "as_ids": False}, "prompt"),
        ({"prompt": b"x", "as_ids": False, "chat": "{"}, "messages"),
        ({"structured": StructuredOutput(kind="json", value="{")}, "response_format"),
        (
            {"dialect": "openai", "structured": StructuredOutput(kind="regex", value="a")},
            "response_format",
        ),
    ],
)
def test_what_cannot_be_said_to_a_server_names_the_field(given, param):
    with pytest.raises(RequestBad) as bad:
        asked(**given)
    assert bad.value.param == param


def test_prefill_makes_one_token_in_one_piece_whatever_was_asked():
    _, body = asked(
        min_tokens=5, logprobs=2, stop_token_ids=(9,), seed=3,
        structured=StructuredOutput(kind="regex", value="a+"),
    )  # fmt: skip
    rewritten = as_prefill({**body, "n": 4, "max_completion_tokens": 64, "stop": ["x"]})
    assert rewritten["max_tokens"] == rewritten["max_completion_tokens"] == 1
    assert rewritten["min_tokens"] == rewritten["n"] == 1
    assert rewritten["stream"] is False
    assert rewritten["prompt"] == body["prompt"]
    assert not {
        "stream_options", "logprobs", "stop", "stop_token_ids", "seed", "structured_outputs"
    } & set(rewritten)  # fmt: skip
    assert body["max_tokens"] == 8, "the request itself stays as it was"


# Answers


@pytest.mark.parametrize(
    ("status", "error", "kind", "says"),
    [
        (400, {"error": {"message": "bad", "param": "top_p"}}, RequestBad, "top_p: 400 bad"),
        (422, {"detail": "x"}, RequestBad, "request: 422"),
        (400, "text", RequestBad, "request: 400"),
        (404, {"error": {"message": "no model"}}, ServerFault, "404 no model"),
        (503, None, ServerFault, "503"),
    ],
)
def test_whose_fault_an_answer_is(status, error, kind, says):
    fault = fault_of(status, error)
    assert isinstance(fault, kind)
    assert str(fault) == says


def test_metrics_of_old_and_new_vllm_are_read_and_ranks_are_added():
    text = """
# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0"} 1.0
vllm:gpu_cache_usage_perc{engine="0"} 0.5
vllm:gpu_cache_usage_perc{engine="1"} 0.7
vllm:generation_tokens_total 10
vllm:gpu_prefix_cache_hits_total 4
vllm:prefix_cache_queries_total 8
vllm:cache_config_info{block_size="16",num_gpu_blocks="100",x="a\\"b"} 1.0
vllm:num_requests_waiting NaN
vllm:broken{ x
python_gc_objects 5
"""
    assert parse_metrics(text) == ServerLoad(
        is_vllm=True, running=5, waiting=1, kv_usage=0.6, generated_tokens=10, prefix_hit_tokens=4,
        prefix_query_tokens=8, blocks=100, block_tokens=16,
    )  # fmt: skip


def test_a_server_without_metrics_of_vllm_is_not_one():
    assert parse_metrics("http_requests_total 5\n") == ServerLoad()


# The ids of the P2P NCCL connector


def test_both_sides_make_the_same_id_and_it_can_be_read_inside_the_server_s_own():
    key = ("req-1", 2)
    name = request_id_of(key, prefill="10.0.0.1:21001", decode="[::1]:22001")
    assert name == request_id_of(key, prefill="10.0.0.1:21001", decode="[::1]:22001")
    found = parse_request_id(f"cmpl-{name}-0")
    assert (found.prefill, found.decode) == ("10.0.0.1:21001", "[::1]:22001")
    assert str(found) == name
    assert request_id_of(("req-1", 3), prefill="a:1", decode="b:2")[-32:] != found.unique


@pytest.mark.parametrize("text", ["", "cmpl-123", "___prefill_addr_a:1___decode_addr_b:2_short"])
def test_what_is_no_such_id_is_refused(text):
    with pytest.raises(ValueError, match="no id of the P2P NCCL connector"):
        parse_request_id(text)


@pytest.mark.parametrize("address", ["", "host", "host:", "host:99999", "a b:1", "a_b:1", "a/b:1"])
def test_what_is_no_address_cannot_stand_in_one(address):
    assert not is_address(address)
    with pytest.raises(ValueError, match="HOST:PORT"):
        request_id_of(("r", 1), prefill=address, decode="b:2")


def test_an_id_is_its_parts():
    assert str(P2pRequestId("a:1", "b:2", "0" * 32)).endswith("_" + "0" * 32)
