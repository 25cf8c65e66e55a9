"""JSON Schemas of all messages as files, so that a change of a contract is seen in review.

python -m schemas.golden            compare, exit 1 on a difference
python -m schemas.golden --write    rewrite (commit only when the difference is understood)
"""

import json
import sys
from pathlib import Path

from schemas.catalogue import BY_SCHEMA_ID

FOLDER = Path(__file__).parent / "json"


def rendered() -> dict[str, str]:
    """File name -> content, one JSON Schema per schema id."""
    return {
        f"{schema_id}.json": json.dumps(cls.model_json_schema(), indent=1, sort_keys=True) + "\n"
        for schema_id, cls in sorted(BY_SCHEMA_ID.items())
    }


def differences() -> list[str]:
    """Names of files that are missing, changed, or no longer belong to a message."""
    want = rendered()
    have = {p.name: p.read_text() for p in FOLDER.glob("*.json")}
    return sorted(n for n in want.keys() | have.keys() if want.get(n) != have.get(n))


def write() -> None:
    """Make the files equal to the classes."""
    FOLDER.mkdir(exist_ok=True)
    want = rendered()
    for stale in FOLDER.glob("*.json"):
        if stale.name not in want:
            stale.unlink()
    for name, text in want.items():
        (FOLDER / name).write_text(text)


def main() -> int:
    if "--write" in sys.argv[1:]:
        write()
        return 0
    changed = differences()
    for name in changed:
        sys.stdout.write(f"{name} differs from its class; run python -m schemas.golden --write\n")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
