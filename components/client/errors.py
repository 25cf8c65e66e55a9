"""What can go wrong for a client, sorted by what it should do."""

from schemas.client import Refusal


class ClientError(Exception):
    """Base of all errors of this package. ``code`` is for programs and stays for ever."""

    code: str = "client_error"


class Refused(ClientError):
    """The fleet says no, or ended the answer: ``code`` is the same that HTTP gives."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.code}: {refusal.message}")
        self.code = refusal.code
        self.param = refusal.param


class CannotConnect(ClientError):
    """No server, or it does not know the key: look at the address and the key file."""

    code = "cannot_connect"


class NobodyAnswers(ClientError):
    """Nobody serves this now: is a gateway (or whoever was asked) running?"""

    code = "nobody_answers"


class TimedOut(ClientError):
    """No answer in time: ask again, or wait longer."""

    code = "timed_out"


class GatewayLost(ClientError):
    """The gateway of this answer fell silent. What was received is whole; ask again."""

    code = "gateway_lost"


class AnswerLost(ClientError):
    """A message of this answer was lost on its way; the answer was cancelled. Ask again."""

    code = "messages_lost"


class ReaderTooSlow(ClientError):
    """More messages wait to be read than the client holds; the answer was cancelled."""

    code = "reader_too_slow"
