"""What a core owner consumed, in order: the whole cause of what it decided.

Once per wake-up, before the outcomes leave and on the same connection, an owner appends one entry.
Replaying the entries after a snapshot through the same core gives the same outcomes.
"""

from typing import ClassVar

from schemas.message import Message


class JournalAppended(Message):
    """One wake-up of a core. Kept in JOURNAL.

    ``index`` counts entries since the process started, from 1. ``now_s`` is the owner's monotonic
    clock, one reading for the whole wake-up. ``inputs`` is a packed array of

    - ``["m", schema id, [fields...]]``  a message, inline (never with a body)
    - ``["r", schema id, source, epoch, seq]``  an event that a stream keeps anyway
    - ``["t"]``  a tick
    - ``["p"]``  the bus came back after a pause

    and ``outcomes`` a packed array of ``[schema id, key, digest]``: what left, in order, where
    ``digest`` is 8 bytes of the packed message's xxh3 hash.

    ``at_ms`` is the owner's wall clock, for people who ask for an instant; no core sees it.
    """

    schema_id: ClassVar[str] = "journal.appended.v1"

    owner: str
    owner_epoch: int
    index: int
    now_s: float
    settings_hash: str
    inputs: bytes
    outcomes: bytes
    at_ms: int = 0


class JournalSnapshotted(Message):
    """The core's whole state after entry ``index``: where a replay may start. Kept in JOURNAL.

    ``state`` packs what the core's ``snapshot`` gave; ``settings`` is the JSON of its settings.
    """

    schema_id: ClassVar[str] = "journal.snapshotted.v1"

    component: str
    owner: str
    owner_epoch: int
    index: int
    now_s: float
    settings_hash: str
    settings: str
    state: bytes
    at_ms: int = 0
