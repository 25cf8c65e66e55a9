"""Which key belongs to whom in a folder of keys.

A key is made for one instance (``router-0.nk``); a deployment may hold one per component instead
(``router.nk``), which then serves all its instances.
"""

from collections.abc import Iterable
from pathlib import Path

from components.cli.errors import CommandFailed

#: Who has a key besides components.
OPERATOR, HISTORY, PROVISIONER = "operator", "history", "provisioner"


def create(folder: Path, components: Iterable[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Keys for ``(component, instance)`` and the roles: ``(component, instance, public key)``."""
    from bus.keys import create_or_load

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    everyone = [*components, *((role, role) for role in (OPERATOR, HISTORY, PROVISIONER))]
    try:
        return [(c, i, create_or_load(folder / f"{i}.nk")) for c, i in everyone]
    except OSError as error:
        raise CommandFailed(f"cannot use the keys in {folder}: {error}") from error


def find(folder: Path | None, component: str, instance: str) -> Path | None:
    """The key file of an instance; None without a folder, for a server that asks for no key.

    Raises ``CommandFailed`` when the folder has none for it.
    """
    if folder is None:
        return None
    for name in (instance, component):
        if (file := folder / f"{name}.nk").is_file():
            return file
    raise CommandFailed(
        f"no key for {instance}: neither {instance}.nk nor {component}.nk in {folder}"
    )
