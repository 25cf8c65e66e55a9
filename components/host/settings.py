"""Settings: a TOML file, then the environment, then the command line; unknown keys are errors.

The file has one table per component (``[gateway]``) and ``[host]`` for what all processes share.
The environment overrides it as ``SWITCHYARD_<SECTION>_<FIELD>``. A field that holds several values
is written there and on the command line as JSON or, for texts, separated by commas.
"""

import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.host.errors import BadSettings

ENV_PREFIX: Final = "SWITCHYARD_"
#: Names the TOML file when the command line does not.
ENV_CONFIG: Final = "SWITCHYARD_CONFIG"


class Settings(BaseModel):
    """Base of every component's settings: frozen, with no room for a misspelt key.

    ``env_aliases`` maps foreign variables that are heard too (``NATS_URL``) to a field; our own
    variable wins over them, they win over the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    env_aliases: ClassVar[Mapping[str, str]] = {}


class HostSettings(Settings):
    """What every process needs to know, whatever it does. Section ``host``."""

    env_aliases: ClassVar[Mapping[str, str]] = {"NATS_URL": "nats_url"}

    nats_url: str = "nats://127.0.0.1:4222"
    #: The nkey seed of this process, mode 0600; none on a server without authentication.
    nats_key_file: Path | None = None
    #: The key is that of all instances of the component: replies come to the component's inbox.
    nats_key_shared: bool = False
    #: ``<component>-0`` unless given; one life at a time may use a name.
    instance: str = Field(default="", max_length=128, pattern=r"^[A-Za-z0-9_-]*$")
    #: First token of every subject.
    subject_prefix: str = Field(default="yard", pattern=r"^[A-Za-z0-9_-]+$")
    #: How long to wait for a server before giving up with exit code 69.
    connect_timeout_s: float = Field(default=10.0, gt=0)
    heartbeat_ms: int = Field(default=250, ge=10)
    #: How long running work may take after SIGTERM.
    drain_s: float = Field(default=20.0, ge=0)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    telemetry: Literal["none", "console", "otlp"] = "none"
    #: OTLP over HTTP: the collector's base address.
    telemetry_endpoint: str = "http://127.0.0.1:4318"
    #: Share of requests whose spans are made; the gateway draws.
    telemetry_sample_ratio: float = Field(default=0.01, ge=0, le=1)
    #: How long the exit may wait for the last spans to leave.
    telemetry_flush_s: float = Field(default=2.0, ge=0)

    #: Be killed when the parent process ends (Linux); ``switchyard up`` sets it.
    die_with_parent: bool = False
    #: The parent that must be there; 0 does not check. Closes the gap before the kernel is told.
    parent_pid: int = Field(default=0, ge=0)


S = TypeVar("S", bound=Settings)


def load(
    settings_type: type[S],
    section: str,
    toml_path: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object],
) -> S:
    """The settings of ``section``; raises ``BadSettings`` naming the key and where it came from."""
    found: dict[str, tuple[Any, str]] = {}
    for key, value in _table(toml_path, section).items():
        found[key] = (value, f"[{section}] of {toml_path}")
    for key, value, where in _from_environ(settings_type, section, environ):
        found[key] = (value, where)
    for key, value in overrides.items():
        parsed = _parsed(settings_type, key, value, key) if isinstance(value, str) else value
        found[key] = (parsed, "the command line")
    return _validated(settings_type, section, found)


def load_process(
    component: str,
    settings_type: type[S],
    overrides: Mapping[str, object],
    environ: Mapping[str, str],
) -> tuple[HostSettings, S]:
    """The host's and the component's settings; raises ``BadSettings``.

    Of ``overrides``, ``config`` is the path of the TOML file, ``host.<field>`` belongs to the
    host's settings, everything else to the component's.
    """
    mine = dict(overrides)
    config = mine.pop("config", None) or environ.get(ENV_CONFIG) or None
    toml_path = None if config is None else Path(str(config))
    hosts = {k.removeprefix("host."): mine.pop(k) for k in list(mine) if k.startswith("host.")}
    host_settings = load(HostSettings, "host", toml_path, environ, hosts)
    if not host_settings.instance:
        host_settings = host_settings.model_copy(update={"instance": f"{component}-0"})
    return host_settings, load(settings_type, component, toml_path, environ, mine)


def _table(toml_path: Path | None, section: str) -> dict[str, Any]:
    if toml_path is None:
        return {}
    try:
        table = tomllib.loads(toml_path.read_text(encoding="utf-8")).get(section, {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSettings(f"cannot read {toml_path}: {error}") from error
    if not isinstance(table, dict):
        raise BadSettings(f"{section} in {toml_path} is not a table")
    return table


def _from_environ(
    settings_type: type[Settings], section: str, environ: Mapping[str, str]
) -> list[tuple[str, Any, str]]:
    prefix = f"{ENV_PREFIX}{section.upper()}_"
    named = [(alias, key) for alias, key in settings_type.env_aliases.items() if alias in environ]
    named += [(v, v.removeprefix(prefix).lower()) for v in sorted(environ) if v.startswith(prefix)]
    return [(key, _parsed(settings_type, key, environ[v], v), v) for v, key in named]


def _parsed(settings_type: type[Settings], key: str, text: str, origin: str) -> Any:
    """Text stays text (pydantic reads numbers and flags from it) unless the field holds several."""
    field = settings_type.model_fields.get(key)
    if field is None or typing.get_origin(field.annotation) not in {tuple, list, dict}:
        return text
    if not text.lstrip().startswith(("[", "{")):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadSettings(f"{origin} is not JSON: {error}") from error


def _validated(settings_type: type[S], section: str, found: Mapping[str, tuple[Any, str]]) -> S:
    unknown = [key for key in found if key not in settings_type.model_fields]
    if unknown:
        allowed = ", ".join(sorted(settings_type.model_fields)) or "none"
        told = "; ".join(f"{key!r} (from {found[key][1]})" for key in sorted(unknown))
        raise BadSettings(f"unknown settings for {section}: {told}. Allowed: {allowed}")
    try:
        return settings_type.model_validate({key: value for key, (value, _) in found.items()})
    except ValidationError as error:
        told = "; ".join(_told(section, e["loc"], e["msg"], found) for e in error.errors())
        raise BadSettings(f"bad settings: {told}") from None


def _told(
    section: str, place: tuple[int | str, ...], what: str, found: Mapping[str, tuple[Any, str]]
) -> str:
    """One mistake as a sentence, without the value: it may be a secret."""
    where = f" (from {found[str(place[0])][1]})" if place and str(place[0]) in found else ""
    return f"{section}.{'.'.join(str(p) for p in place)}{where}: {what}"
