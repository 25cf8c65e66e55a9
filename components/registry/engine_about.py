"""What an engine says of itself, cut so that its record fits into the bucket and a page. Pure.

The arithmetic, in bytes of JSON, the larger of the two forms (a character is six at most): what an
engine is 8 KiB; its name, model, shard and host 4 x 256 x 6 = 6 KiB; names of fields, times and
numbers less than 1 KiB. So a record is at most 15 KiB, where the bucket takes 16, and a page of
``ENGINES_PAGE_MAX`` = 200 is at most 3 MiB, where the bus takes 8.
"""

import math
from typing import Any, Final

from schemas.engines import EngineAbout
from schemas.nodes import EngineArg, Topology

ABOUT_BYTES_MAX: Final = 8 * 1024
#: Of one capability, and of one argument's name and value.
CAPABILITY_CHARS_MAX: Final = 64
ARG_NAME_CHARS_MAX: Final = 64
ARG_CHARS_MAX: Final = 256


def fitting(about: EngineAbout) -> EngineAbout:
    """As it can be read again from JSON, at most ``ABOUT_BYTES_MAX``.

    Left out are numbers that JSON does not have, what is too long by itself, where the engine
    stands and what it can do when that alone is too much, and the last arguments.
    """
    topology = about.topology if math.isfinite(about.topology.network_gbps) else Topology()
    able = tuple(c for c in about.capabilities if len(c) <= CAPABILITY_CHARS_MAX)
    update: dict[str, Any] = {"topology": topology, "capabilities": able, "engine_args": {}}
    bare = about.model_copy(update=update)
    if _size(bare) > ABOUT_BYTES_MAX:
        bare = EngineAbout(kind=about.kind, version=about.version, parallelism=about.parallelism)
    args = {name: value for name, value in about.engine_args.items() if _is_plain(name, value)}
    cut = bare.model_copy(update={"engine_args": args})
    while _size(cut) > ABOUT_BYTES_MAX:
        _ = args.popitem()
        cut = bare.model_copy(update={"engine_args": args})
    return EngineAbout.model_validate_json(cut.model_dump_json())


def _is_plain(name: str, value: EngineArg) -> bool:
    if len(name) > ARG_NAME_CHARS_MAX:
        return False
    if isinstance(value, str):
        return len(value) <= ARG_CHARS_MAX
    return not isinstance(value, float) or math.isfinite(value)


def _size(about: EngineAbout) -> int:
    return len(about.model_dump_json().encode())
