"""What a process has counted since its start. Shown by ``ShowComponent``."""

from typing import Final

#: More names than this means that a counter was named after data.
NAMES_MAX: Final = 1000


class Counters(dict[str, int]):
    """Names to numbers: ``..._total`` only rises, any other name is a level, set as an item."""

    def add(self, name: str, amount: int = 1) -> None:
        """Raise ``name``, which starts at 0."""
        if name in self:
            self[name] += amount
        else:
            assert len(self) < NAMES_MAX, f"{NAMES_MAX} counters: is {name!r} made of data?"
            self[name] = amount
