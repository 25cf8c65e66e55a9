import pytest

from components.bridge.address import BadAddress, normal


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("10.0.0.5:20003", "10.0.0.5:20003"),
        ("Prefill-0.yard.svc:80", "prefill-0.yard.svc:80"),
        ("prefill_0:65535", "prefill_0:65535"),
        ("[fd00::7]:20003", "[fd00::7]:20003"),
        # As vLLM writes it, which adds a port to whatever its host is called.
        ("fd00::7:8000", "[fd00::7]:8000"),
        ("FD00:0::7:8000", "[fd00::7]:8000"),
    ],
)
def test_an_address_has_one_form(text: str, form: str):
    assert normal(text) == form
    assert normal(form) == form


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "a", "a:", ":80", "a:0", "a:65536", "a:080", "a:-1", "a: 80", "a:\uff18\uff10",
        "a:80\n", "a b:80", "http://a:80", "a/b:80", "-a:80", "a..b:80", "10.0.0:80",
        "10.0.0.400:80", "0.0.0.0:80", "[::]:80", ":::80", "224.0.0.1:80", "[10.0.0.5]:80",
        "[a]:80", "[fd00::7:80",
        "a" * 64 + ":80", "a." * 130 + "b:80", "user@a:80",
    ],
)  # fmt: skip
def test_what_nobody_can_connect_to_is_no_address(text: str):
    with pytest.raises(BadAddress):
        normal(text)
