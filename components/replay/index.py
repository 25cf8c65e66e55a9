"""From a request's id to the messages of REQUESTS that speak of it. Pure, bounded.

A batch of steps holds many requests, so an answer needs a handful of messages. The index is rebuilt
from the stream when its process starts; it keeps the last ``requests_max`` ids, oldest out first.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bus import codec
from bus.errors import MalformedMessage
from schemas.request import RequestEvent, RequestEventsBatched

#: Messages that one request's answer may need: what is beyond is left out, the newest first.
PLACES_MAX: Final = 256

_EVENTS: Final = 5 + list(RequestEventsBatched.model_fields).index("events")
_ID: Final = list(RequestEvent.model_fields).index("request_id")


@dataclass(slots=True)
class RequestIndex:
    """Sequence numbers per request id."""

    requests_max: int
    _places: OrderedDict[str, "array[int]"] = field(default_factory=OrderedDict)
    forgotten_total: int = 0

    def __len__(self) -> int:
        return len(self._places)

    def add(self, seq: int, request_ids: Iterable[str]) -> None:
        """The message at ``seq`` speaks of these; messages come in order."""
        for request_id in request_ids:
            places = self._places.get(request_id)
            if places is None:
                if len(self._places) >= self.requests_max:
                    self._places.popitem(last=False)
                    self.forgotten_total += 1
                self._places[request_id] = array("Q", (seq,))
            elif places[-1] != seq and len(places) < PLACES_MAX:
                places.append(seq)

    def places(self, request_id: str) -> Sequence[int]:
        """Where to read of it, in order; empty for an id that is not known (any more)."""
        return self._places.get(request_id, ())


def ids_in(data: bytes) -> set[str]:
    """The requests that one stored batch speaks of, without building its events.

    Empty for what is no such batch.
    """
    try:
        fields = codec.unpack(data)
        if fields[0] != RequestEventsBatched.schema_id:
            return set()
        return {_id_of(event) for event in fields[_EVENTS]}
    except (MalformedMessage, LookupError, TypeError):
        return set()


def _id_of(event: Any) -> str:
    request_id = event[_ID]
    if not isinstance(request_id, str):
        raise TypeError("an id is text")
    return request_id
