"""Bootstrap rooms: where a prefill server and a decode server find each other. Pure.

A room belongs to one choice of one try. The prefill server takes ``room % dp_size`` for its rank,
so rooms are uniform; and two requests in one room would read each other's KV, so no room is given
out while it is in use, however unlikely that would be.
"""

from collections.abc import Callable, Iterable
from typing import Final

#: Rooms go from 0 to this, inclusive: SGLang keeps them in signed 64 bits.
ROOM_MAX: Final = 2**63 - 1

#: ``draw(n)`` is uniform in 0 .. n - 1.
Draw = Callable[[int], int]


class Rooms:
    """The rooms in use. Bounded by whoever bounds the jobs."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._taken: set[int] = set()

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, count: int) -> tuple[int, ...]:
        """Fresh rooms, none of them in use."""
        rooms: list[int] = []
        while len(rooms) < count:
            room = self._draw(ROOM_MAX + 1)
            if room not in self._taken:
                self._taken.add(room)
                rooms.append(room)
        return tuple(rooms)

    def give_back(self, rooms: Iterable[int]) -> None:
        """Both servers are done with them. Harmless twice."""
        self._taken.difference_update(rooms)
