"""Why a process did not start, or not go on; each class knows its exit code (sysexits.h)."""

from typing import ClassVar, Final

EXIT_OK: Final = 0
EXIT_UNAVAILABLE: Final = 69
EXIT_FAULT: Final = 70
EXIT_SETTINGS: Final = 78


class HostError(Exception):
    """Base of all errors of this package."""

    exit_code: ClassVar[int] = EXIT_FAULT


class BadSettings(HostError, ValueError):
    """A setting is unknown or not of its type: the message names it and what is allowed."""

    exit_code = EXIT_SETTINGS


class CannotStart(HostError):
    """Something outside is missing or taken (a port in use): try again when it is there.

    A component raises this in ``start``; the process ends with 69 and without a traceback.
    """

    exit_code = EXIT_UNAVAILABLE
