"""Each process finds its own key, and nobody runs without one where keys are asked for."""

import stat
from pathlib import Path

import pytest

from components.cli import keyring, main
from components.cli.errors import CommandFailed
from components.cli.setup import SERVER_CONFIG


def test_every_process_and_every_role_gets_a_key_of_its_own(tmp_path: Path):
    folder = tmp_path / "keys"
    users = keyring.create(folder, [("router", "router-0"), ("worker", "decode-0")])
    assert [(role, instance) for role, instance, _ in users] == [
        ("router", "router-0"),
        ("worker", "decode-0"),
        ("operator", "operator"),
        ("history", "history"),
        ("provisioner", "provisioner"),
    ]
    assert len({public for *_, public in users}) == len(users)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in folder.iterdir())


def test_keys_that_are_there_stay(tmp_path: Path):
    first = keyring.create(tmp_path, [("router", "router-0")])
    assert keyring.create(tmp_path, [("router", "router-0")]) == first


def test_a_key_that_others_may_read_is_refused(tmp_path: Path):
    keyring.create(tmp_path, [("router", "router-0")])
    (tmp_path / "router-0.nk").chmod(0o644)
    with pytest.raises(CommandFailed, match=r"router-0\.nk"):
        keyring.create(tmp_path, [("router", "router-0")])


def test_an_instances_own_key_comes_before_that_of_its_component(tmp_path: Path):
    (tmp_path / "router.nk").touch()
    assert keyring.find(tmp_path, "router", "router-0") == tmp_path / "router.nk"
    (tmp_path / "router-0.nk").touch()
    assert keyring.find(tmp_path, "router", "router-0") == tmp_path / "router-0.nk"


def test_without_a_folder_nobody_needs_a_key():
    assert keyring.find(None, "router", "router-0") is None


def test_a_missing_key_is_named(tmp_path: Path):
    with pytest.raises(CommandFailed, match=r"router-0\.nk nor router\.nk"):
        keyring.find(tmp_path, "router", "router-0")


def test_a_tenant_called_like_a_process_does_not_get_its_key(tmp_path: Path):
    users = keyring.create(tmp_path, [("router", "router-0"), *keyring.clients(["router-0"])])
    assert users[0][2] != users[1][2]
    assert keyring.find(tmp_path, "client", "router-0") == tmp_path / "client-router-0.nk"


def test_a_tenant_named_twice_gets_one_key():
    assert keyring.clients(["acme", "acme"]) == [("client", "acme")]


def test_tenants_that_have_a_key_keep_their_rights_when_another_gets_one(tmp_path: Path):
    for tenants in (["--client", "acme"], ["--client", "a/b"]):
        assert main.main(["setup", "keys", "--keys", str(tmp_path), *tenants]) == 0
    assert keyring.tenants_in(tmp_path) == ["a/b", "acme", "default"]
    config = (tmp_path / SERVER_CONFIG).read_text()
    for token in ("a=2Fb", "acme", "default"):
        assert f'"yard.ask.chat.complete.{token}"' in config
        assert f'"_INBOX_client.{token}.>"' in config
    (tmp_path / "client-acme.nk").unlink()
    assert main.main(["setup", "keys", "--keys", str(tmp_path)]) == 0
    assert "acme" not in (tmp_path / SERVER_CONFIG).read_text()
