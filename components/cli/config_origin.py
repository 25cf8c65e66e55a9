"""What each setting comes to and where that was said. Pure: tables and environments in.

Secrets are hidden: pydantic's own kind, fields whose name says so, and passwords in URLs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from components.host.settings import ENV_PREFIX, Settings

HIDDEN: Final = "(hidden)"
_SECRET: Final = re.compile(r"(secret|token|password|passwd|api_key)s?$", re.IGNORECASE)
_USERINFO: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)")


@dataclass(frozen=True, slots=True)
class Setting:
    """``origin``: ``default``, the variable's name, or ``[section] of FILE``."""

    section: str
    name: str
    value: Any
    origin: str


def explained(
    settings: Settings,
    section: str,
    table: Mapping[str, Any],
    file: str,
    environ: Mapping[str, str],
) -> list[Setting]:
    """Every setting of a section in the order of the model.

    ``table`` is the section as it stands in ``file``; both and ``environ`` are what ``settings``
    were loaded from.
    """
    origins = {
        **dict.fromkeys(table, f"[{section}] of {file}"),
        **_said_in(settings, section, environ),
    }
    plain = settings.model_dump(mode="json")
    return [
        Setting(section, name, hidden(name, plain[name]), origins.get(name, "default"))
        for name in type(settings).model_fields
    ]


def _said_in(settings: Settings, section: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Field -> variable; our own win over the aliases."""
    prefix = f"{ENV_PREFIX}{section.upper()}_"
    aliases = {field: alias for alias, field in settings.env_aliases.items() if alias in environ}
    own = {v.removeprefix(prefix).lower(): v for v in environ if v.startswith(prefix)}
    return {**aliases, **own}


def hidden(name: str, value: Any) -> Any:
    """The value without what nobody should read over a shoulder."""
    if value and _SECRET.search(name):
        return HIDDEN
    match value:
        case str():
            return _USERINFO.sub(HIDDEN, value)
        case dict():
            return {key: hidden(str(key), inner) for key, inner in value.items()}
        case list():
            return [hidden("", inner) for inner in value]
        case _:
            return value
