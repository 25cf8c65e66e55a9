"""What can go wrong on the bus, sorted by what the caller should do."""


class BusError(Exception):
    """Base of all errors of this package."""


class BadName(BusError, ValueError):
    """The name cannot be a subject token: shorten it."""


class MalformedMessage(BusError, ValueError):
    """The bytes are not a message of the expected class: count it and drop it."""


class ClientMistake(BusError, ValueError):
    """A client asked what cannot be answered: tell it the code and the message, both fit for it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class MessageTooLarge(BusError, ValueError):
    """The message is over the bus's payload limit: send less, or answer 413."""


class AnswerTooLarge(MessageTooLarge):
    """An answer is: give less. If a handler lets it pass, it is counted and the asker times out."""


class NoResponders(BusError):
    """Nobody listens on this subject now: choose another addressee or try again later."""


class AskTimedOut(BusError):
    """Somebody listens but did not answer in time."""


class NotConnected(BusError):
    """The bus is not connected (yet, or any more)."""


class NotAllowed(BusError):
    """The server's permissions forbid this subscription: mend the catalogue, or use another key."""


class ServerFailed(BusError):
    """nats-server did not start or does not answer: its log file says why."""


class StreamUnavailable(BusError):
    """The stream does not exist or JetStream does not answer: go on without history."""


class RecordRefused(StreamUnavailable):
    """The store answers and does not take this record, now or later: the text says what helps."""


class TooManyPages(BusError):
    """More follows than is read in one go: ask page by page, or for a part."""


class RecordChanged(BusError):
    """Somebody else changed the record meanwhile: read it again, decide again."""
