"""The nats-server configuration: two accounts, one nkey per process, what each may do.

No secret stands in it: the server knows public keys only. ``python -m bus.server_config`` prints
the configuration for deployments, with one key per component from the environment; a copy of it is
kept in ``deploy/nats/nats-server.conf``.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bus.clients import DEFAULT_TENANT
from bus.endpoint import PAYLOAD_BYTES_MAX
from bus.permissions import (
    CONTROL,
    HISTORY,
    RESPONSES_MAX,
    RESPONSES_TTL_S,
    ROLES,
    Permissions,
    Service,
    history_services,
    permissions_for,
)
from bus.subjects import ANY, PREFIX

MIB: Final = 1024 * 1024

#: ``(component or role, instance, public nkey)``; the key may be a reference like ``$NAME``.
User = tuple[str, str, str]

_REFERENCE: Final = re.compile(r"\$[A-Z][A-Z0-9_]*_[A-Z0-9_]*")
_PUBLIC_NKEY: Final = re.compile(r"U[A-Z2-7]{55}")


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one server bears. ``pending_bytes_max`` is what may wait for one slow client."""

    payload_bytes_max: int = PAYLOAD_BYTES_MAX
    pending_bytes_max: int = 64 * MIB
    connections_max: int = 4096
    write_deadline: str = "5s"
    memory_store: str = "512MB"
    file_store: str = "4GB"


def server_config(
    users: Sequence[User],
    *,
    listen: str,
    store_dir: str,
    prefix: str = PREFIX,
    server_name: str = "switchyard",
    log_file: str | None = None,
    limits: ServerLimits | None = None,
) -> str:
    """The text of a configuration file. Without ``users`` anyone who can connect may do anything.

    ``listen`` is ``host:port``. Raises ``ValueError`` for an unknown role or what is no public key.
    """
    lines = [_HEAD, f"server_name: {_quoted(server_name)}"]
    lines += _server_block(listen, store_dir, log_file, limits or ServerLimits())
    if users:
        lines += _accounts(users, prefix)
    return "\n".join(lines) + "\n"


def deployment_config() -> str:
    """For real deployments: one key per component, from the environment, any instance name.

    A client's key is of one tenant: a copy of its block, with other tokens, admits another.
    """
    users = [
        (role, DEFAULT_TENANT if role == "client" else ANY, f"$SWITCHYARD_{role.upper()}_NKEY")
        for role in ROLES
    ]
    return server_config(users, listen="127.0.0.1:4222", store_dir="$SWITCHYARD_NATS_STORE_DIR")


_HEAD: Final = "# Written by bus/server_config.py from the message catalogue. Do not edit by hand."


def _server_block(
    listen: str, store_dir: str, log_file: str | None, limits: ServerLimits
) -> list[str]:
    lines = [
        f"listen: {_quoted(listen)}",
        f"max_payload: {limits.payload_bytes_max}",
        f"max_pending: {limits.pending_bytes_max}",
        f"max_connections: {limits.connections_max}",
        f"write_deadline: {_quoted(limits.write_deadline)}",
        'ping_interval: "10s"',
        "ping_max: 2",
    ]
    if log_file is not None:
        lines += [
            f"log_file: {_quoted(log_file)}",
            "logfile_size_limit: 16MB",
            "logfile_max_num: 3",
        ]
    return [
        *lines,
        "",
        "jetstream {",
        f"  store_dir: {_quoted(store_dir)}",
        f"  max_memory_store: {limits.memory_store}",
        f"  max_file_store: {limits.file_store}",
        '  sync_interval: "1s"',
        "}",
    ]


def _accounts(users: Sequence[User], prefix: str) -> list[str]:
    granted = [(user, permissions_for(user[0], user[1], prefix=prefix)) for user in users]
    control = [_user(u, rights) for u, rights in granted if rights.account == CONTROL]
    history = [_user(u, rights) for u, rights in granted if rights.account == HISTORY]
    return [
        "",
        "accounts {",
        f"  {CONTROL} {{",
        "    jetstream: enabled",
        "    users: [",
        *control,
        "    ]",
        "    exports: [",
        *(_export(s) for s in history_services()),
        "    ]",
        "  }",
        f"  {HISTORY} {{",
        "    # Reads what streams keep, and nothing else: no subject of CONTROL is visible here.",
        "    users: [",
        *history,
        "    ]",
        "    imports: [",
        *(_import(s) for s in history_services()),
        "    ]",
        "  }",
        "}",
    ]


def _export(service: Service) -> str:
    # A batched direct get answers with many messages; "stream" lets them all through.
    kind = "stream" if service.many_answers else "singleton"
    subject = _quoted(service.subject)
    return f"      {{ service: {subject}, response: {kind}, accounts: [{HISTORY}] }}"


def _import(service: Service) -> str:
    origin = f"{{ account: {CONTROL}, subject: {_quoted(service.subject)} }}"
    renamed = "" if service.local == service.subject else f", to: {_quoted(service.local)}"
    return f"      {{ service: {origin}{renamed} }}"


def _user(user: User, rights: Permissions) -> str:
    role, instance, nkey = user
    if not (_PUBLIC_NKEY.fullmatch(nkey) or _REFERENCE.fullmatch(nkey)):
        raise ValueError(f"the key of {role} {instance} is not a public user nkey")
    lines = [
        f"      # {role} {instance}" if instance != ANY else f"      # every {role}",
        "      {",
        f"        nkey: {_quoted(nkey)}",
        "        permissions {",
        *_allow("publish", rights.publish),
        *_allow("subscribe", rights.subscribe),
    ]
    if rights.responses:
        lines += [
            f'          allow_responses {{ max: {RESPONSES_MAX}, expires: "{RESPONSES_TTL_S}s" }}'
        ]
    return "\n".join([*lines, "        }", "      }"])


def _allow(verb: str, subjects: Sequence[str]) -> list[str]:
    # An empty list would allow everything; the own inbox keeps it from being empty.
    assert subjects, "permissions name at least the own inbox"
    listed = [f"            {_quoted(s)}" for s in subjects]
    return [f"          {verb}: {{ allow: [", *listed, "          ] }"]


def _quoted(text: str) -> str:
    """A string, or a reference to a variable of the server's environment."""
    return text if _REFERENCE.fullmatch(text) else json.dumps(text)


if __name__ == "__main__":
    sys.stdout.write(deployment_config())
