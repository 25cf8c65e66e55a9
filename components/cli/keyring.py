"""Which key belongs to whom in a folder of keys.

A key is made for one instance (``router-0.nk``); a deployment may hold one per component instead
(``router.nk``), which then serves all its instances.
"""

from collections.abc import Iterable
from pathlib import Path

from bus.names import decode_name, encode_name
from components.cli.errors import CommandFailed

#: Who has a key besides components.
OPERATOR, HISTORY, PROVISIONER = "operator", "history", "provisioner"
#: A program outside that asks over NATS; its instance is its tenant.
CLIENT = "client"


def create(folder: Path, components: Iterable[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Keys for ``(component, instance)`` and the roles: ``(component, instance, public key)``."""
    from bus.keys import create_or_load

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    everyone = [*components, *((role, role) for role in (OPERATOR, HISTORY, PROVISIONER))]
    try:
        return [(c, i, create_or_load(file_of(folder, c, i))) for c, i in everyone]
    except OSError as error:
        raise CommandFailed(f"cannot use the keys in {folder}: {error}") from error


def clients(tenants: Iterable[str]) -> list[tuple[str, str]]:
    """``(component, instance)`` of the clients of these tenants, for ``create``."""
    return [(CLIENT, tenant) for tenant in dict.fromkeys(tenants)]


def tenants_in(folder: Path) -> list[str]:
    """The tenants whose clients have a key there."""
    beginning = f"{CLIENT}-"
    names = [file.stem for file in folder.glob(f"{beginning}*.nk")]
    return sorted(decode_name(name.removeprefix(beginning)) for name in names)


def file_of(folder: Path, component: str, instance: str) -> Path:
    """Where the key lies; a tenant's cannot be taken for that of a process of its name."""
    if component == CLIENT:
        return folder / f"{CLIENT}-{encode_name(instance)}.nk"
    return folder / f"{instance}.nk"


def find(folder: Path | None, component: str, instance: str) -> Path | None:
    """The key file of an instance; None without a folder, for a server that asks for no key.

    Raises ``CommandFailed`` when the folder has none for it.
    """
    if folder is None:
        return None
    own = file_of(folder, component, instance)
    for file in (own, folder / f"{component}.nk"):
        if file.is_file():
            return file
    raise CommandFailed(f"no key for {instance}: neither {own.name} nor {component}.nk in {folder}")
