"""Hashes of passwords, the file of the keys that sign, the first password of a new registry."""

import os
import secrets
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from components.host.errors import CannotStart
from components.registry.signing import SigningKeys

#: OWASP's second choice (2025): 19 MiB, two passes, about 35 ms.
MEMORY_KIB: Final = 19 * 1024
PASSES: Final = 2
BOOTSTRAP: Final = "admin.password"
SIGNING_KEY: Final = "signing.key"


def hash_password(password: str) -> str:
    """Argon2id in PHC form."""
    return Argon2id(
        salt=os.urandom(16), length=32, iterations=PASSES, lanes=1, memory_cost=MEMORY_KIB
    ).derive_phc_encoded(password.encode())


def is_password(password: str, hashed: str) -> bool:
    """In the same time whatever the answer is."""
    try:
        Argon2id.verify_phc_encoded(password.encode(), hashed)
    except (InvalidKey, ValueError):
        return False
    return True


#: Checked for accounts that do not exist, so that they take as long.
NOBODY: Final = hash_password(secrets.token_hex(16))


class SigningKeyFile:
    """The keys that sign, in a file of mode 0600. One process's: nobody else writes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / SIGNING_KEY
        self._fresh = folder / f"{SIGNING_KEY}.new"

    def read(self) -> SigningKeys:
        """A new key where there is none; raises ``CannotStart``."""
        file = self._file
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not file.exists():
                self.write(SigningKeys.made(os.urandom(32)))
            if file.stat().st_mode & 0o077:
                raise CannotStart(f"others may read {file}: chmod 600 {file}")
            # Of a change that was not finished: that key never signed.
            self._fresh.unlink(missing_ok=True)
            return SigningKeys.parsed(file.read_text())
        except (OSError, ValueError) as error:
            raise CannotStart(f"cannot use the signing key {file}: {error}") from error

    def write(self, keys: SigningKeys) -> None:
        """All of it or nothing, whatever ends the process meanwhile; raises ``OSError``."""
        self._fresh.unlink(missing_ok=True)
        _write_once(self._fresh, keys.text)
        self._fresh.replace(self._file)
        number = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def bootstrap_password(folder: Path) -> str:
    """A new password for ``admin``, left in a file of mode 0600 for whoever runs this."""
    password = secrets.token_urlsafe(24)
    file = folder / BOOTSTRAP
    file.unlink(missing_ok=True)
    _write_once(file, password + "\n")
    return password


def _write_once(file: Path, text: str) -> None:
    number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(number, "w") as out:
        out.write(text)
        out.flush()
        os.fsync(number)
