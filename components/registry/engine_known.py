"""One engine as a registry knows it: its record, and the life that was heard. Pure."""

from dataclasses import dataclass

from components.registry.engine_life import GONE, Life
from schemas.engines import EngineRecord


@dataclass(slots=True)
class Known:
    """One engine; ``since_s``: from when on the life in its record could have been heard.

    ``stands``: what is heard here stands against the later life that the record tells of.
    """

    since_s: float
    record: EngineRecord | None = None
    life: Life | None = None
    stands: bool = False


def is_news(known: Known) -> bool:
    """Does the record tell of a life that was not heard here, and that may be there?"""
    if known.record is None:
        return False
    if known.life is None:
        return True
    later = known.record.process_epoch > known.life.said.epoch
    return later and not (known.stands and known.life.here)


def is_gone(known: Known) -> bool:
    """It ended, by what was heard here or, where nothing was, by its record."""
    if known.life is not None and not is_news(known):
        return not known.life.here
    return known.record is not None and known.record.state in GONE and not here(known)


def here(known: Known) -> bool:
    return known.life is not None and known.life.here


def is_described(known: Known) -> bool:
    """Has this life said what it is, be it to another registry?"""
    record, life = known.record, known.life
    return bool(record and life and record.about_epoch == life.said.epoch)
