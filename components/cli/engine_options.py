"""Which engines the settings of `up` mean, on which GPUs or at which addresses."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from components.cli.plan import BadPlan, Engines
from components.cli.settings import UpSettings
from components.host.settings import load
from components.worker.settings import WorkerSettings

TP: Final = "tensor_parallel_size"


@dataclass(frozen=True, slots=True)
class Fleet:
    """``devices`` are ``tp`` per worker in order, ``urls`` one per worker; both may be empty."""

    engines: Engines
    devices: tuple[int, ...] = ()
    tp: int = 1
    urls: tuple[str, ...] = ()


def engine_args(
    settings: UpSettings, config: Path | None, environ: Mapping[str, str]
) -> dict[str, Any]:
    """What every worker tells vLLM: its own settings, then those of `up`; raises ``BadSettings``.

    Put together here, because what a command line gives a worker replaces its file's table.
    """
    worker = load(WorkerSettings, "worker", config, environ, {})
    more = {} if settings.tp is None else {TP: settings.tp}
    return {**worker.engine_args, **settings.engine_args, **more}


def as_assignments(arguments: Mapping[str, object]) -> list[str]:
    """``--set engine_args.KEY=VALUE ...``, the values as JSON."""
    return [
        word
        for key, value in arguments.items()
        for word in ("--set", f"engine_args.{key}={json.dumps(value)}")
    ]


def fleet_of(settings: UpSettings, arguments: Mapping[str, Any]) -> Fleet:
    """Raises ``BadPlan`` for engines, devices or addresses that do not fit to each other."""
    if engine_of(settings) == "openai":
        return _elsewhere(settings)
    tp = arguments.get(TP, 1)
    if type(tp) is not int or tp < 1:
        raise BadPlan(f"{TP} is {tp!r} where a number of GPUs belongs")
    prefill, decode = settings.prefill, settings.decode
    devices = settings.devices
    if settings.prefill_gpus or settings.decode_gpus:
        devices = _by_role(settings)
        prefill = _engines_on(settings.prefill_gpus, tp, prefill, "prefill")
        decode = _engines_on(settings.decode_gpus, tp, decode, "decode")
    return Fleet(Engines.asked_for(prefill, decode, settings.aggregated), devices, tp)


def engine_of(settings: UpSettings) -> str | None:
    """The kind of engine: addresses mean ``openai``; raises ``BadPlan`` if that was denied."""
    addresses = settings.prefill_addrs or settings.decode_addrs or settings.aggregated_addrs
    if addresses and settings.engine not in {None, "openai"}:
        raise BadPlan(f"engines at addresses are --engine openai, not {settings.engine}")
    return "openai" if addresses else settings.engine


def _by_role(settings: UpSettings) -> tuple[int, ...]:
    if settings.devices:
        raise BadPlan("either devices, or prefill_gpus and decode_gpus (PREFILL_GPU, DECODE_GPU)")
    if settings.aggregated:
        raise BadPlan("aggregated engines take their GPUs from devices")
    if not (settings.prefill_gpus and settings.decode_gpus):
        raise BadPlan("give both prefill_gpus and decode_gpus (PREFILL_GPU, DECODE_GPU)")
    both = settings.prefill_gpus + settings.decode_gpus
    if len(set(both)) < len(both):
        raise BadPlan("a GPU is named twice: each engine needs its own")
    return both


def _engines_on(gpus: tuple[int, ...], tp: int, asked: int | None, role: str) -> int:
    engines, rest = divmod(len(gpus), tp)
    if rest or not engines or asked not in {None, engines}:
        wanted = f"{asked} {role} engines" if asked else f"{role} engines"
        raise BadPlan(f"{len(gpus)} GPUs do not make up {wanted} of {tp}")
    return engines


def _elsewhere(settings: UpSettings) -> Fleet:
    addresses = (settings.prefill_addrs, settings.decode_addrs, settings.aggregated_addrs)
    asked = (settings.prefill, settings.decode, settings.aggregated)
    if not any(addresses):
        raise BadPlan(
            "openai engines run elsewhere: say where with --prefill-addrs and --decode-addrs,"
            " or --aggregated-addrs (HOST:PORT,HOST:PORT)"
        )
    for role, number, named in zip(
        ("prefill", "decode", "aggregated"), asked, addresses, strict=True
    ):
        if number not in {None, len(named)}:
            raise BadPlan(f"{number} {role} engines, but {len(named)} {role} addresses")
    engines = Engines.asked_for(*map(len, addresses))
    return Fleet(engines, urls=tuple(url_of(a) for role in addresses for a in role))


def url_of(address: str) -> str:
    """``http://HOST:PORT`` for ``HOST:PORT``; a URL is itself. Raises ``BadPlan``."""
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        fits = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        complete = "://" in address or parts.port is not None
    except ValueError:
        fits = complete = False
    if not (fits and complete):
        raise BadPlan(f"{address!r} is no HOST:PORT and no URL")
    return url.rstrip("/")
