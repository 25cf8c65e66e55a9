"""`switchyard setup`: what `up` does for its own server, for a NATS that runs elsewhere.

switchyard setup keys --keys DIR       nkey seeds, and a server configuration beside them
switchyard setup streams --nats URL    streams and buckets; a second time changes nothing
"""

import argparse
import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from components.cli.errors import CommandFailed

if TYPE_CHECKING:
    from components.cli.settings import UpSettings

SERVER_CONFIG: Final = "nats-server.conf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="keys|streams")
    keys = what.add_parser(
        "keys", help="a key per process, and a server configuration with their rights"
    )
    keys.add_argument("--keys", type=Path, required=True, metavar="DIR", help="where to put them")
    for role in ("prefill", "decode", "aggregated"):
        keys.add_argument(f"--{role}", type=int, metavar="N", help=f"number of {role} engines")
    keys.add_argument(
        "--client",
        action="append",
        metavar="TENANT",
        help="a key for clients of this tenant too; may be repeated",
    )
    keys.add_argument("--listen", default="127.0.0.1:4222", metavar="HOST:PORT", help="%(default)s")
    keys.add_argument("--store-dir", default="/data/jetstream", metavar="DIR", help="%(default)s")
    streams = what.add_parser("streams", help="create what JetStream shall keep")
    streams.add_argument("--nats", required=True, metavar="URL")
    streams.add_argument("--keys", type=Path, metavar="DIR", help="folder with provisioner.nk")
    streams.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file with [up.history.STREAM] tables"
    )
    for command in (keys, streams):
        command.add_argument("--subject-prefix", default="yard", metavar="P", help="%(default)s")


def run(args: argparse.Namespace) -> int:
    return write_keys(args) if args.what == "keys" else create(args)


def write_keys(args: argparse.Namespace) -> int:
    """Seeds for the processes that `up` would run, and the configuration that lets them in."""
    from bus.clients import DEFAULT_TENANT
    from bus.server_config import server_config
    from components.cli import keyring
    from components.cli.plan import BadPlan, Engines, planned

    try:
        engines = Engines.asked_for(args.prefill, args.decode, args.aggregated)
    except BadPlan as error:
        raise CommandFailed(str(error), 2) from error
    processes = planned(engines, http=("", 0), udp=("", 0))
    instances = [(p.component, p.instance) for p in processes]
    # Who has a key keeps it: without its file, a tenant's clients are shut out.
    tenants = [DEFAULT_TENANT, *keyring.tenants_in(args.keys), *(args.client or ())]
    instances += keyring.clients(tenants)
    users = keyring.create(args.keys, instances)
    config = args.keys / SERVER_CONFIG
    # Public keys only, so it may be read by whatever user the server runs as.
    config.write_text(
        server_config(
            users, listen=args.listen, store_dir=args.store_dir, prefix=args.subject_prefix
        )
    )
    print(f"{len(users)} keys and {SERVER_CONFIG} in {args.keys}")
    return 0


def _settings(config: Path | None) -> "UpSettings":
    from components.cli.settings import UpSettings
    from components.host.errors import BadSettings
    from components.host.settings import load

    try:
        return load(UpSettings, "up", config, os.environ, {})
    except BadSettings as error:
        raise CommandFailed(str(error), 2) from error


def create(args: argparse.Namespace) -> int:
    from components.cli.own_nats import create_streams

    settings = _settings(args.config)
    asyncio.run(
        create_streams(
            args.nats, args.keys, args.subject_prefix, settings.history, settings.history_replicas
        )
    )
    print(f"streams are as they should be at {args.nats}")
    return 0
