"""A key's text holds a secret; what is told of it does not."""

import hashlib
import secrets

import pytest

from components.domain.api_keys import Shown, read, written

SECRET = "A" * 40 + "_-z"


def test_what_is_written_is_read_as_its_id_and_the_hash_of_its_secret():
    text = written("5f0c2a9e11d4", SECRET)
    assert text == f"sy-5f0c2a9e11d4-{SECRET}"
    assert read(text) == Shown("5f0c2a9e11d4", hashlib.sha256(SECRET.encode()).digest())
    assert SECRET not in repr(read(text))


def test_secrets_as_python_makes_them_fit():
    for _ in range(50):
        assert read(written(secrets.token_hex(6), secrets.token_urlsafe(32))) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sy-",
        "sk-5f0c2a9e11d4-" + SECRET,
        "sy-5f0c2a9e11d4-" + SECRET[:-1],
        "sy-5f0c2a9e11d4-" + SECRET + "x",
        "sy-5F0C2A9E11D4-" + SECRET,
        "sy-5f0c2a9e11d-" + SECRET,
        "sy-5f0c2a9e11d4-" + SECRET + "\n",
        "sy-5f0c2a9e11d4-" + SECRET[:-1] + "é",
    ],
)
def test_what_is_no_key_is_none(text: str):
    assert read(text) is None
