"""Ports, looked at before anything is started, so that a taken one is told at once."""

import errno
import socket

from components.cli.errors import CommandFailed

FLAGS = {socket.SOCK_STREAM: "--port", socket.SOCK_DGRAM: "--udp-port"}


def choose(host: str, port: int, kind: socket.SocketKind) -> int:
    """The port to use: ``port`` if it is free, any free one for 0. Raises ``CommandFailed``.

    Nothing is held: between this look and the component's own bind somebody else may take it, and
    the component says so then.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    flag = FLAGS[kind]
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:
            # As servers bind: connections of an earlier life that still linger are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise CommandFailed(_taken(host, port, kind)) from error
            raise CommandFailed(f"cannot listen on {host}:{port}: {error.strerror}") from error
        except OverflowError:
            raise CommandFailed(f"{flag} {port} is no port") from None
        chosen: int = probe.getsockname()[1]
        return chosen


def reachable(host: str) -> str:
    """An address under which a server that listens on ``host`` is found from this machine."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def authority(host: str, port: int) -> str:
    """Host and port as they stand in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _taken(host: str, port: int, kind: socket.SocketKind) -> str:
    look = "ss -ltnp" if kind == socket.SOCK_STREAM else "ss -lunp"
    flag = FLAGS[kind]
    return (
        f"{host}:{port} is taken (`{look} 'sport = :{port}'` says by whom)."
        f" Choose another with {flag}, or any free one with {flag} 0"
    )
