"""A taken port is told before anything starts, and 0 finds a free one."""

import socket
from collections.abc import Iterator

import pytest

from components.cli import ports
from components.cli.errors import CommandFailed

KINDS = [(socket.SOCK_STREAM, "--port 0"), (socket.SOCK_DGRAM, "--udp-port 0")]


@pytest.fixture(params=KINDS, ids=["tcp", "udp"])
def taken(request: pytest.FixtureRequest) -> Iterator[tuple[int, socket.SocketKind, str]]:
    kind, flag = request.param
    with socket.socket(socket.AF_INET, kind) as holder:
        holder.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            holder.listen()
        yield holder.getsockname()[1], kind, flag


def test_a_taken_port_is_refused_with_the_next_step(taken: tuple[int, socket.SocketKind, str]):
    port, kind, flag = taken
    with pytest.raises(CommandFailed, match=rf"{port} is taken.*{flag}"):
        ports.choose("127.0.0.1", port, kind)


def test_a_free_port_is_kept(taken: tuple[int, socket.SocketKind, str]):
    _, kind, _ = taken
    chosen = ports.choose("127.0.0.1", 0, kind)
    assert chosen > 0
    assert ports.choose("127.0.0.1", chosen, kind) == chosen


def test_an_address_of_another_machine_cannot_be_listened_on():
    with pytest.raises(CommandFailed, match=r"cannot listen on 192\.0\.2\.1"):
        ports.choose("192.0.2.1", 0, socket.SOCK_STREAM)


def test_what_listens_everywhere_is_reached_here():
    assert ports.reachable("0.0.0.0") == "127.0.0.1"
    assert ports.authority(ports.reachable("::"), 80) == "[::1]:80"
    assert ports.authority("127.0.0.1", 80) == "127.0.0.1:80"
