import pytest

from components.bridge.settings import BridgeSettings
from components.host.errors import BadSettings
from components.host.settings import load


def test_the_seed_s_proxy_variables_are_heard():
    environ = {
        "PROXY_PORT": "30001",
        "PREFILL_ADDRS": "10.0.0.5:20003, Prefill-1:20003",
        "DECODE_ADDRS": "fd00::7:20005",
    }
    settings = load(BridgeSettings, "bridge", None, environ, {})
    assert settings.ping_port == 30001
    assert settings.prefill_addrs == ("10.0.0.5:20003", "prefill-1:20003")
    assert settings.decode_addrs == ("[fd00::7]:20005",)


def test_nothing_is_registered_unless_asked_for():
    settings = load(BridgeSettings, "bridge", None, {"PREFILL_ADDRS": ""}, {})
    assert (settings.ping_port, settings.prefill_addrs, settings.decode_addrs) == (0, (), ())


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"PREFILL_ADDRS": "10.0.0.5"}, "prefill_addrs.*port"),
        ({"PREFILL_ADDRS": "a:1", "DECODE_ADDRS": "A:1"}, "twice"),
        ({"PROXY_PORT": "70000"}, "ping_port"),
    ],
)
def test_a_bad_address_is_named(environ: dict[str, str], said: str):
    with pytest.raises(BadSettings, match=said):
        load(BridgeSettings, "bridge", None, environ, {})
