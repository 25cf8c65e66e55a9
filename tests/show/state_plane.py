"""`make show-state`: the state plane, and a past that can be replayed."""

import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.show.proof import Proof, show

PROOFS: Final[tuple[Proof, ...]] = ()


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="show-") as folder:
        return show("show-state", PROOFS, Path(folder), sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
