"""The file of keys under which datagrams are signed; who signs and who checks read it alike."""

import os
from pathlib import Path

from components.domain.signed_frame import BadKeys, parse_keys


def read_keys(file: str) -> dict[str, bytes]:
    """The keys in ``file`` by their ids, in its order: the first one signs.

    Raises ``BadKeys``, which names the file: for what holds no keys, and for what others may read,
    because whoever reads a key speaks for every engine.
    """
    try:
        with Path(file).open(encoding="ascii") as opened:
            if os.fstat(opened.fileno()).st_mode & 0o077:
                raise BadKeys(f"others may read the keys in {file}: chmod 600 {file}")
            text = opened.read()
    except (OSError, UnicodeDecodeError) as error:
        raise BadKeys(f"cannot use the keys in {file}: {error}") from error
    try:
        return parse_keys(text)
    except BadKeys as error:
        raise BadKeys(f"cannot use the keys in {file}: {error}") from error
