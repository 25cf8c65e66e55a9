"""ELRAR's engine agent: what is said of an engine, when, and to whom. No vLLM here."""

import json
import socket
import time
from contextlib import contextmanager

import pytest

from components.bridge.datagram import read as read_datagram
from components.domain.signed_frame import verify
from components.worker.elrar import sender as sending
from components.worker.elrar.core import HEARTBEAT_S, STUCK_S, EngineState, Step
from components.worker.elrar.sender import Sender, own_address
from components.worker.elrar.settings import BadElrar, ElrarSettings, read

HOST = {"VLLM_ELRAR_GATEWAY_HOST": "10.0.0.9"}


def settings(**given):
    return read({**HOST, **given}, "10.0.0.1", 77)


def state(kv_blocks=1000, seqs_max=8, **given):
    return EngineState("e1", 0.2, kv_blocks, seqs_max, **given)


def step(at_s, running=2, waiting=0, tokens=2, kv_usage=0.25, prompts=()):
    return Step(at_s, running, waiting, tokens, kv_usage, prompts)


def times_said(engine, since_s, seconds):
    """When something is said in a time without steps."""
    said = []
    for tick in range(int(seconds * 10)):
        now_s = since_s + tick / 10
        if engine.due(now_s):
            engine.say(now_s, 0)
            said.append(now_s)
    return said


def read_of(said):
    """As the bridge reads it, which is strict."""
    return read_datagram(json.dumps(said).encode())


# Settings


def test_the_seed_s_variables_and_defaults():
    assert settings() == ElrarSettings("unicast", "10.0.0.9", 9999, 0.2, "http://10.0.0.1:8000")
    given = settings(
        VLLM_ELRAR_GATEWAY_PORT="7000", VLLM_ELRAR_PUSH_INTERVAL="50", VLLM_ELRAR_ENGINE_ID="e7"
    )
    assert given == ElrarSettings("unicast", "10.0.0.9", 7000, 0.05, "e7")


def test_broadcast_needs_no_host_and_goes_to_one_address_only():
    given = read(
        {"VLLM_ELRAR_NETWORK_MODE": "broadcast", "VLLM_ELRAR_BROADCAST_PORT": "7001"}, "", 77
    )
    assert given is not None
    assert (given.host, given.port) == ("255.255.255.255", 7001)


@pytest.mark.parametrize("given", [{}, {**HOST, "VLLM_ENABLE_ELRAR": "false"}])
def test_without_a_host_or_when_switched_off_nothing_is_sent(given):
    assert read(given, "10.0.0.1", 77) is None


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"VLLM_ENGINE_URL": "http://a:1"}, "http://a:1"),
        ({"VLLM_API_BASE": "http://b:2"}, "http://b:2"),
        ({"VLLM_PORT": "8100"}, "http://10.0.0.1:8100"),
        ({"PORT": "8200", "VLLM_SCHEME": "https"}, "https://10.0.0.1:8200"),
    ],
)
def test_an_engine_without_a_name_is_named_after_its_address(given, name):
    assert settings(**given).engine_id == name


def test_an_engine_without_an_address_is_named_after_its_process():
    given = read(HOST, "", 77)
    assert given is not None
    assert given.engine_id == "engine_id-77"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VLLM_ENABLE_ELRAR", "maybe"),
        ("VLLM_ELRAR_NETWORK_MODE", "multicast"),
        ("VLLM_ELRAR_GATEWAY_PORT", "0"),
        ("VLLM_ELRAR_GATEWAY_PORT", "x"),
        ("VLLM_ELRAR_PUSH_INTERVAL", "-5"),
        ("VLLM_ELRAR_ENGINE_ID", "a\nb"),
        ("VLLM_ELRAR_ENGINE_ID", "x" * 300),
    ],
)
def test_what_cannot_be_names_the_variable(name, value):
    with pytest.raises(BadElrar, match=name):
        settings(**{name: value})


# What is said


def test_what_is_said_is_what_the_bridge_reads():
    engine = state()
    engine.on_step(step(1.0, waiting=3, tokens=600, prompts=(100, 100)))
    engine.on_step(step(1.05, waiting=3, tokens=600))
    said = read_of(engine.say(1.05, 1_700_000_000_000))
    assert said.engine_id == "e1"
    assert said.latency_pred_ms == pytest.approx(50)
    assert said.pending_tokens_total == 300
    assert (said.kv_cache_free_blocks, said.kv_cache_total_blocks) == (750, 1000)
    assert said.engine_capacity == pytest.approx(8 / 0.05)
    assert said.scheduling_mode == "balanced"


@pytest.mark.parametrize(
    ("tokens", "mode"),
    [(100, "latency_optimized"), (256, "balanced"), (1024, "balanced"),
     (1025, "throughput_optimized")],
)  # fmt: skip
def test_the_mode_follows_the_mean_of_the_last_steps(tokens, mode):
    engine = state()
    for number in range(20):
        engine.on_step(step(1 + number / 100, tokens=9_999 if number < 5 else tokens))
    assert engine.say(2, 0)["scheduling_mode"] == mode


def test_the_first_state_says_that_nothing_runs():
    engine = state(kv_blocks=-1)
    assert engine.due(0.0)
    said = read_of(engine.say(0.0, 5))
    assert (said.pending_tokens_total, said.engine_capacity, said.latency_pred_ms) == (0, 0, 0)
    assert (said.kv_cache_free_blocks, said.scheduling_mode) == (-1, "balanced")


def test_steps_are_said_no_more_often_than_the_interval_and_the_last_one_is():
    engine = state()
    said = []
    for tick in range(100):  # one step every 10 ms for a second
        now_s = tick / 100
        engine.on_step(step(now_s, kv_usage=tick / 100))
        if engine.due(now_s):
            said.append(engine.say(now_s, 0)["kv_cache_free_blocks"])
    assert len(said) == 5
    assert engine.due(1.2), "the last step is still to be said"
    assert engine.say(1.2, 0)["kv_cache_free_blocks"] == 10


def test_a_busy_engine_in_a_long_step_is_never_said_to_be_idle():
    """The seed's heartbeat said so for a tenth of the time."""
    engine = state()
    engine.on_step(step(1.0, running=4, waiting=2, prompts=(50,)))
    engine.on_step(step(1.02, running=4, waiting=2))
    first = engine.say(1.02, 1)
    said = []
    for tick in range(1_000):  # ten seconds in which nothing happens
        now_s = 1.02 + tick / 100
        if engine.due(now_s):
            said.append(engine.say(now_s, 2))
    assert len(said) == int(9.99 / HEARTBEAT_S)
    for one in said:
        assert {**one, "timestamp_ms": 1} == first
        assert one["pending_tokens_total"] == 100


@pytest.mark.parametrize(("running", "waiting"), [(4, 0), (0, 2)])
def test_an_engine_that_hangs_is_not_said_to_work_forever(running, waiting):
    engine = state()
    engine.on_step(step(1.0, running=running, waiting=waiting))
    said = times_said(engine, 1.0, 10 * STUCK_S)
    assert STUCK_S - HEARTBEAT_S <= said[-1] - 1.0 < STUCK_S
    engine.on_step(step(5_000.0, running=running))
    assert engine.due(5_000.0), "it goes on"


def test_an_engine_without_work_is_said_to_be_there_for_as_long_as_it_is():
    engine = state()
    engine.on_step(step(1.0, running=4))
    engine.on_step(step(1.1, running=0))
    assert times_said(engine, 1.1, 10 * STUCK_S)[-1] > 9 * STUCK_S


def test_nothing_is_repeated_by_one_of_several_servers_which_does_not_see_all_steps():
    engine = state(repeats=False)
    assert len(times_said(engine, 0.0, 100.0)) == 1, "the first state"
    engine.on_step(step(200.0, running=0))
    assert len(times_said(engine, 200.0, 100.0)) == 1


def test_an_engine_that_is_done_is_said_to_be_so():
    engine = state()
    engine.on_step(step(1.0, running=4, waiting=2))
    engine.on_step(step(1.02, running=0, waiting=0, kv_usage=0.0))
    said = engine.say(1.02, 0)
    assert (said["pending_tokens_total"], said["kv_cache_free_blocks"]) == (0, 1000)


def test_a_pause_between_two_requests_is_no_step():
    engine = state()
    engine.on_step(step(1.0, running=1))
    engine.on_step(step(1.05, running=0))
    engine.on_step(step(60.0, running=1))
    assert engine.say(60.0, 0)["latency_pred_ms"] == pytest.approx(50)


# The socket


@contextmanager
def heard(host="127.0.0.1", keys_file=""):
    """A bridge's socket, and an agent that says its engine's state there, to a name for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bridge:
        bridge.bind(("127.0.0.1", 0))
        bridge.settimeout(5)
        to = ElrarSettings("unicast", host, bridge.getsockname()[1], 0.001, "e1", keys_file)
        sender = Sender(to, EngineState("e1", 0.02, 1000, 8))
        try:
            yield bridge, sender
        finally:
            sender.close()


def until(condition):
    end_s = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.002)


def test_states_leave_in_steps_and_heartbeats_without_any():
    with heard() as (bridge, sender):
        first = read_datagram(bridge.recv(2048))
        assert first.pending_tokens_total == 0
        sender.on_step(step(time.monotonic(), waiting=5))
        assert read_datagram(bridge.recv(2048)).pending_tokens_total == 5
    assert (sender.sent, sender.lost) == (2, 0)


def keys_file(folder, mode):
    file = folder / "udp.keys"
    file.write_text(f"k1 {'ab' * 32}\nold {'cd' * 32}\n")
    file.chmod(mode)
    return str(file)


def test_who_has_a_key_signs_and_numbers_what_it_says(tmp_path):
    with heard(keys_file=keys_file(tmp_path, 0o600)) as (bridge, sender):
        frames = [verify(bridge.recv(2048), {"k1": b"\xab" * 32})]
        sender.on_step(step(time.monotonic(), waiting=5))
        frames.append(verify(bridge.recv(2048), {"k1": b"\xab" * 32}))
    assert [frame.seq for frame in frames] == [1, 2]
    assert len({frame.epoch for frame in frames}) == 1
    assert read_datagram(frames[1].payload).pending_tokens_total == 5


@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_a_key_that_others_may_read_signs_nothing_and_the_engine_is_told(tmp_path, caplog, mode):
    file = keys_file(tmp_path, mode)
    with heard(keys_file=file) as (bridge, sender):
        sender.on_step(step(time.monotonic(), waiting=5))
        until(lambda: not sender._thread.is_alive())
        bridge.settimeout(0.05)
        with pytest.raises(TimeoutError):
            bridge.recv(2048)
    assert sender.sent == 0
    assert [record.message for record in caplog.records] == [
        f"no state is sent: others may read the keys in {file}: chmod 600 {file}"
    ]


def test_broadcasts_are_allowed_to_the_socket_that_sends_them():
    sender = Sender(ElrarSettings("broadcast", "127.0.0.1", 9, 0.02, "e1"), state())
    try:
        until(lambda: sender.sent)
        assert sender._socket is not None
        assert sender._socket.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
    finally:
        sender.close()


def test_a_bridge_whose_name_comes_later_or_moves_is_found(monkeypatch, caplog):
    real, asked = socket.getaddrinfo, []

    def names(host, *args, **more):
        asked.append(host)
        if len(asked) < 3:
            raise socket.gaierror("not yet")
        return real("127.0.0.1", *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", names)
    monkeypatch.setattr(sending, "LOOKUP_S", 0.0)
    with heard("bridge.example") as (bridge, sender):
        sender.on_step(step(time.monotonic(), waiting=7))
        assert read_datagram(bridge.recv(2048)).pending_tokens_total == 7
        until(lambda: len(asked) > 4)
    assert set(asked) == {"bridge.example"}
    assert [r.message.split(",")[0] for r in caplog.records] == ["bridge.example cannot be found"]


def test_an_engine_does_not_notice_that_nothing_can_be_sent(caplog):
    with heard() as (_, sender):
        until(lambda: sender.sent)
        assert sender._socket is not None
        sender._socket.close()
        for number in range(1, 6):
            sender.on_step(step(time.monotonic()))
            until(lambda due=number: sender.lost >= due)
    assert sender.sent == 1
    assert len(caplog.records) == 1, "said once"


def test_nothing_is_said_after_the_end():
    with heard() as (_, sender):
        until(lambda: sender.sent)
        sender.end()
        sender.on_step(step(time.monotonic()))
        until(lambda: sender._socket is None)
        sender.on_step(step(time.monotonic()))
    assert sender.sent == 1


def test_this_machine_has_an_address_or_none(monkeypatch):
    assert own_address() == "" or own_address().count(".") == 3
    monkeypatch.setattr(sending, "_ANYWHERE", ("256.0.0.1", 9))
    assert own_address() == ""
