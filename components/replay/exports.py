"""Bundles that are fetched over the bus: made once, given out in pieces, thrown away.

One at a time: whoever asks for another one ends the one before, whose next piece is then refused.
"""

import asyncio
import contextlib
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from components.host.clock import Clock
from components.replay.bundle import BadBundle
from components.replay.export import export
from components.replay.past import Past
from components.replay.refused import Refused
from schemas.past import ExportPast, ExportPastReply

PIECE_BYTES: Final = 512 * 1024
KEPT_S: Final = 300.0


@dataclass(slots=True)
class Made:
    """A bundle on disk, and when it was asked for last."""

    name: str
    path: Path
    asked_s: float


class Exports:
    """Files stand in a folder of the process's own, which goes with it."""

    def __init__(self, past: Past, clock: Clock) -> None:
        self._past = past
        self._clock = clock
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._made: Made | None = None

    async def piece(self, asked: ExportPast) -> ExportPastReply:
        """The next bytes; raises ``Refused``."""
        made = self._made
        if not asked.bundle:
            made = await self._make(asked)
        elif made is None or made.name != asked.bundle:
            raise Refused("no_such_bundle", "it is gone: begin again without naming one")
        made.asked_s = self._clock.now_s()
        total, data = await asyncio.to_thread(_read, made.path, asked.offset)
        return ExportPastReply(bundle=made.name, total=total, offset=asked.offset, data=data)

    async def _make(self, asked: ExportPast) -> Made:
        self._drop()
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="switchyard-export-")
        name = secrets.token_hex(8)
        path = Path(self._folder.name) / f"{name}.zip"
        wall_ms = self._clock.wall_ms()
        to_ms = min(asked.to_ms, wall_ms)
        try:
            await export(self._past, path, from_ms=asked.from_ms, to_ms=to_ms, now_ms=wall_ms)
        except (BadBundle, OSError) as error:
            path.unlink(missing_ok=True)
            raise Refused("too_much", f"it cannot be written: {error}") from error
        self._made = Made(name, path, self._clock.now_s())
        return self._made

    def on_tick(self) -> None:
        """Throw away what nobody has asked for in a while."""
        if self._made and self._clock.now_s() - self._made.asked_s > KEPT_S:
            self._drop()

    def close(self) -> None:
        """Throw away everything. Harmless twice."""
        self._drop()
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()

    def _drop(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            with contextlib.suppress(OSError):
                made.path.unlink(missing_ok=True)


def _read(path: Path, offset: int) -> tuple[int, bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        return path.stat().st_size, file.read(PIECE_BYTES)
