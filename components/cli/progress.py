"""What a person sees on standard error while things start: a spinner, or plain lines in a log."""

import sys
import time
from types import TracebackType
from typing import Protocol, Self


class Progress(Protocol):
    """Shows one current step and keeps what was said. Use as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def step(self, text: str) -> None:
        """This is being done now."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def show(self, text: str) -> None:
        """A line to be copied, as it is."""

    def rest(self) -> None:
        """Nothing is being done now; lines may still be said."""


class PlainProgress:
    """One line per step, with the seconds since the start."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def step(self, text: str) -> None:
        if text != self._last:
            self.say(text)
            self._last = text

    def say(self, text: str) -> None:
        seconds = time.monotonic() - self._began_s
        print(f"[{seconds:6.2f} s] {text}", file=sys.stderr, flush=True)

    def show(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def rest(self) -> None:
        self._last = ""


class TerminalProgress:
    """A spinner beside the current step."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.text import Text

        self._text = Text
        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("starting")

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._status.stop()

    def step(self, text: str) -> None:
        self._status.update(self._text(text))  # as it is, not as markup
        self._status.start()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def show(self, text: str) -> None:
        self.say(text)

    def rest(self) -> None:
        self._status.stop()


def progress() -> Progress:
    """What fits to where standard error goes."""
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress()
