"""nkeys: who a process is to the server. Seeds live in files that only their owner reads.

python -m bus.keys FILE...    create what is missing, print each public key
"""

import os
import secrets
import sys
from pathlib import Path

import nkeys

KEY_FILE_MODE = 0o600


def create_or_load(path: Path) -> str:
    """The public key of the seed in ``path``, which is created when missing (mode 0600).

    Raises ``PermissionError`` when everyone may read an existing file.
    """
    if path.exists():
        return load(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
    # Complete or not there at all: a process that starts at the same moment never reads half a key.
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, KEY_FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(bytes(seed))
    try:
        path.hardlink_to(scratch)
    except FileExistsError:
        pass  # somebody else was first; theirs counts
    finally:
        scratch.unlink()
    return load(path)


def load(path: Path) -> str:
    """The public key of the seed in ``path``.

    Raises ``OSError`` when it cannot be read, or everyone can read it, and ``ValueError`` when it
    is no seed.
    """
    if path.stat().st_mode & 0o007:
        raise PermissionError(f"{path} can be read by everyone: chmod 600 it")
    try:
        pair = nkeys.from_seed(bytearray(path.read_bytes().strip()))
    except (nkeys.NkeysError, ValueError) as error:
        raise ValueError(f"{path} holds no nkey seed") from error
    public: bytes = pair.public_key
    pair.wipe()
    return public.decode()


def main(paths: list[str]) -> int:
    """Print ``FILE PUBLIC_KEY`` for each of ``paths``."""
    for path in paths:
        sys.stdout.write(f"{path} {create_or_load(Path(path))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
