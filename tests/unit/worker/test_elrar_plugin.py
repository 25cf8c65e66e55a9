"""What vLLM calls, with its figures but without it: no error of the agent ever reaches vLLM."""

import gc
import importlib
import socket
import sys
from types import ModuleType, SimpleNamespace

import pytest

from components.bridge.datagram import read

CONFIG = SimpleNamespace(
    cache_config=SimpleNamespace(num_gpu_blocks=100),
    scheduler_config=SimpleNamespace(max_num_seqs=8),
    parallel_config=SimpleNamespace(_api_process_count=1),
)


@pytest.fixture
def plugin(monkeypatch):
    """The module, with nothing of vLLM's under it but the name of the base class."""
    loggers = ModuleType("vllm.v1.metrics.loggers")
    loggers.StatLoggerBase = object  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.v1", "vllm.v1.metrics"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, loggers.__name__, loggers)
    monkeypatch.delitem(sys.modules, "components.worker.elrar.plugin", raising=False)
    yield importlib.import_module("components.worker.elrar.plugin")
    del sys.modules["components.worker.elrar.plugin"]


@pytest.fixture
def bridge(monkeypatch):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
        heard.bind(("127.0.0.1", 0))
        heard.settimeout(5)
        monkeypatch.setenv("VLLM_ELRAR_GATEWAY_HOST", "127.0.0.1")
        monkeypatch.setenv("VLLM_ELRAR_GATEWAY_PORT", str(heard.getsockname()[1]))
        monkeypatch.setenv("VLLM_ELRAR_PUSH_INTERVAL", "1")
        monkeypatch.setenv("VLLM_ELRAR_ENGINE_ID", "e1")
        yield heard


@pytest.fixture
def begun(plugin):
    made = []

    def begin(config=CONFIG, index=0):
        made.append(plugin.ElrarStatLogger(config, index))
        made[-1].log_engine_initialized()
        return made[-1]

    yield begin
    for one in made:
        if one._sender is not None:
            one._sender.close()


def scheduler(running=2, waiting=1, **given):
    return SimpleNamespace(
        num_running_reqs=running, num_waiting_reqs=waiting, kv_cache_usage=0.5, **given
    )


def iteration(prompt=300, new=2, first=(0.1, 0.1)):
    return SimpleNamespace(
        num_prompt_tokens=prompt, num_generation_tokens=new, time_to_first_tokens_iter=list(first)
    )


def said(bridge):
    return read(bridge.recv(4096))


def test_an_engine_is_idle_at_first_and_then_what_its_steps_say(begun, bridge):
    logger = begun()
    first = said(bridge)
    assert (first.engine_id, first.pending_tokens_total) == ("e1", 0)
    assert first.kv_cache_free_blocks == first.kv_cache_total_blocks == 100
    logger.record(scheduler(num_skipped_waiting_reqs=3), iteration())
    state = said(bridge)
    assert state.pending_tokens_total == (1 + 3) * 150
    assert state.kv_cache_free_blocks == 50


def test_a_step_without_figures_changes_nothing_and_one_without_tokens_counts(begun, bridge):
    logger = begun()
    said(bridge)
    logger.record(None, iteration())
    logger.record(scheduler(waiting=0), None)
    logger.record(scheduler(waiting=5), iteration(prompt=0, first=()))
    states = [said(bridge)]
    while states[-1].pending_tokens_total != 5:  # nothing is known of prompts yet: one token each
        states.append(said(bridge))
    assert all(s.kv_cache_free_blocks == 50 for s in states)


def test_tokens_of_a_step_are_exact_where_vllm_counts_them(plugin):
    details = SimpleNamespace(num_ctx_tokens=2048, num_generation_tokens=7)
    counted = plugin._step(scheduler(iteration_details=details), iteration(prompt=0, first=()))
    assert counted.tokens == 2055
    assert plugin._step(scheduler(iteration_details=None), iteration()).tokens == 302


def test_engines_of_one_server_have_names_of_their_own(begun, bridge):
    begun(index=2)
    assert said(bridge).engine_id == "e1/2"


@pytest.mark.parametrize(("servers", "repeats"), [(1, True), (4, False)])
def test_one_of_several_servers_repeats_nothing(begun, bridge, servers, repeats):
    parallel = SimpleNamespace(_api_process_count=servers)
    logger = begun(SimpleNamespace(**{**vars(CONFIG), "parallel_config": parallel}))
    assert logger._sender._state._repeats is repeats


def test_without_a_host_it_does_nothing(begun, monkeypatch):
    monkeypatch.delenv("VLLM_ELRAR_GATEWAY_HOST", raising=False)
    logger = begun()
    logger.record(scheduler(), iteration())
    assert logger._sender is None


@pytest.mark.parametrize(
    ("variable", "value", "config"),
    [
        ("VLLM_ELRAR_GATEWAY_PORT", "many", CONFIG),
        ("VLLM_ELRAR_ENGINE_ID", "e1", SimpleNamespace()),  # a vLLM that names things otherwise
    ],
)
def test_what_is_wrong_at_the_start_costs_the_states_only(
    begun, bridge, monkeypatch, caplog, variable, value, config
):
    monkeypatch.setenv(variable, value)
    logger = begun(config)
    logger.record(scheduler(), iteration())
    assert logger._sender is None
    assert len(caplog.records) == 1
    assert "ELRAR" in caplog.text


def test_figures_of_another_form_silence_it_and_never_reach_the_engine(begun, bridge, caplog):
    logger = begun()
    sender = logger._sender
    said(bridge)
    for _ in range(3):
        logger.record(SimpleNamespace(), iteration())
    assert logger._sender is None
    assert sender._ended.is_set(), "no heartbeat of an engine of which nothing is known"
    assert len(caplog.records) == 1


def test_an_engine_that_is_forgotten_is_not_spoken_of(plugin, bridge):
    logger = plugin.ElrarStatLogger(CONFIG)
    logger.log_engine_initialized()
    sender = logger._sender
    said(bridge)
    del logger
    gc.collect()
    assert sender._ended.is_set()
    sender.close()
