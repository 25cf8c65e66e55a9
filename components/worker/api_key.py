"""The key of servers elsewhere, which lies in a file and goes with every request."""

from pathlib import Path

from components.host.errors import CannotStart


def bearer(file: str) -> dict[str, str]:
    """The header that shows it; none without a file. Raises ``CannotStart``."""
    if not file:
        return {}
    try:
        key = Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CannotStart(f"cannot read the servers' key: {error}") from error
    return {"authorization": f"Bearer {key}"}
