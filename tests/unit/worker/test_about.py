"""What a worker says of its engine, once, for the record."""

from typing import Any

import pytest

from components.host.version import version
from components.worker.about import about, public
from components.worker.engine import Capabilities
from components.worker.settings import WorkerSettings
from schemas.engines import ENGINE_ARGS_MAX
from schemas.fleet import ModelCard


class Engine:
    capabilities = Capabilities(frozenset({"prefill", "decode"}), 1024, 64, 4)

    def model_card(self) -> ModelCard:
        return ModelCard(model="m", created_s=0, context_tokens_max=1024, features=("tools",))


def told(**settings: Any) -> Any:
    engine: Any = Engine()
    return about(WorkerSettings.model_validate(settings), engine)


def test_a_simulated_engine_says_its_profile_and_what_it_can_do():
    said = told(profile="llama3-8b/tp1/h100")
    assert (said.kind, said.version, said.parallelism.tp) == ("sim", version(), 1)
    assert said.capabilities == ("decode", "prefill", "tools")
    assert said.engine_args == {"profile": "llama3-8b/tp1/h100", "speed": 1.0}


@pytest.mark.parametrize(
    ("args", "sizes"),
    [
        ({}, (1, 1, 1, 1)),
        ({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, (4, 2, 1, 1)),
        (
            {"tensor_parallel_size": 2, "data_parallel_size": 4, "enable_expert_parallel": True},
            (2, 1, 4, 8),
        ),
        ({"tensor_parallel_size": "four"}, (1, 1, 1, 1)),
    ],
)
def test_vllm_s_groups_are_those_of_its_arguments(args: dict[str, Any], sizes: tuple[int, ...]):
    said = told(engine="vllm", engine_args=args)
    found = said.parallelism
    assert (found.tp, found.pp, found.dp, found.ep) == sizes
    assert said.engine_args == args


def test_of_a_server_elsewhere_only_its_address_is_known():
    said = told(engine="openai", url="http://10.0.0.7:8000")
    assert (said.version, said.parallelism.tp) == ("", 1)
    assert said.engine_args == {"url": "http://10.0.0.7:8000"}
    pair = told(engine="sglang", prefill_urls=["http://p:1"], decode_urls=["http://d:2"])
    assert pair.engine_args == {"prefill_urls": "http://p:1", "decode_urls": "http://d:2"}


@pytest.mark.parametrize(
    "name",
    [
        *("hf_token", "api_key", "API-KEYS", "password", "client_secret", "auth", "apikey"),
        *("authtoken", "hf_pwd", "apiKey", "ssl_keyfile", "passphrase", "credentials", "HFTOKEN"),
        *("tokens", "tokenizer_token", "basicauth"),
    ],
)
def test_secrets_are_not_said(name: str):
    assert public({name: "x", "max_num_batched_tokens": 8192}) == {"max_num_batched_tokens": 8192}
    assert public({name.replace("tokens", "token"): 1234}) == {}


@pytest.mark.parametrize(
    "name", ["tokenizer", "tokenizer_mode", "skip_tokenizer_init", "tokenizer-revision"]
)
def test_a_tokenizer_is_no_secret(name: str):
    assert public({name: "slow"}) == {name: "slow"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("https://h/v1?api_key=s", "https://h/v1"),
        ("http://user:secret@proxy:1", "http://proxy:1"),
        ("https://u@h/v1#s", "https://h/v1"),
        ("http://a:1?k=s,t http://u:s@b:2", "http://a:1 http://b:2"),
        ("/models/llama", "/models/llama"),
    ],
)
def test_urls_are_said_without_user_and_query(given: str, said: str):
    assert public({"url": given}) == {"url": said}


@pytest.mark.parametrize(
    "value",
    [
        *("Authorization: Bearer x", "--api-key=x", '{"token": "x"}', "--hf-token x"),
        *("http://u:a/b@h", "user:secret@host:1"),
    ],
)
def test_secrets_inside_of_values_are_not_said(value: str):
    assert public({"extra": value}) == {}


def test_arguments_are_plain_and_bounded():
    many = {f"a{number:03}": number for number in range(ENGINE_ARGS_MAX + 5)}
    assert list(public(many)) == sorted(many)[:ENGINE_ARGS_MAX]
    odd = {
        "nested": {"a": 1},
        "listed": [1],
        "long": "x" * 257,
        "n" * 65: 1,
        "huge": 2**70,
        "none": float("nan"),
        "kept": None,
    }
    assert public(odd) == {"kept": None}


def test_where_it_stands_is_said_by_its_operator_and_of_gpus_by_its_environment(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    rack = {"rack_id": "r7", "numa_node": 1}
    said = told(engine="vllm", topology=rack).topology
    assert (said.rack_id, said.numa_node, said.gpu_device_ids) == ("r7", 1, (2, 3))
    assert told(topology=rack).topology.gpu_device_ids == ()
    chosen = told(engine="vllm", topology={"gpu_device_ids": (5,)}).topology
    assert chosen.gpu_device_ids == (5,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8a3c")
    assert told(engine="vllm").topology.gpu_device_ids == ()
