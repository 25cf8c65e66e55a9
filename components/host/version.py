"""Which Switchyard this is."""

from importlib import metadata


def version() -> str:
    """The installed distribution's version; ``unknown`` where only the source tree is there."""
    try:
        return metadata.version("switchyard")
    except metadata.PackageNotFoundError:
        return "unknown"
