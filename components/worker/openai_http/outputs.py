"""What the server says of a choice, as entries: ids and their text, or text whose ids nobody knows.

Ids are the truth: a vLLM server returns them, the text is made here (``text.py``), and a stream may
go on at any other engine. Without the model's tokenizer here, or from a server that returns no ids,
text is the server's and ids only count (*opaque*): such a stream ends with its server. So does one
whose output a grammar shapes: no server can take that up in the middle.
"""

from typing import Any, Final

from components.host.clock import Clock
from components.worker.continuing import Finish
from components.worker.engine import JobKey
from components.worker.openai_http.answers import UNKNOWN_ID, Piece
from components.worker.openai_http.choices import Choice
from components.worker.openai_http.faults import ServerFault
from components.worker.openai_http.text import TextFromIds, TextFromServer
from components.worker.outbox import Outbox

#: Weight of the newest step in the mean time between two tokens.
NEWEST: Final = 0.1
OPAQUE: Final = {"opaque": True}


class Outputs:
    """Turns pieces into entries. ``as_ids``: ids mean something here."""

    def __init__(self, out: Outbox, clock: Clock) -> None:
        self._out = out
        self._clock = clock
        self.as_ids = False
        self.tokens = 0
        self.step_ms = 0.0

    def take(self, key: JobKey, choice: Choice, piece: Piece) -> bool:
        """Say what this piece adds; False when a stop text has ended the choice.

        Raises ``ServerFault``.
        """
        choice.started = True
        if self.as_ids and piece.token_ids is not None:
            return self._take_ids(key, choice, piece, piece.token_ids)
        return self._take_text(key, choice, piece)

    def end(self, key: JobKey, choice: Choice, finish: Finish) -> None:
        """Say that the choice has ended."""
        said = [*finish, choice.cached_tokens]
        self._out.write((*key, choice.number, choice.index, [], "", None, said))

    def _take_ids(self, key: JobKey, choice: Choice, piece: Piece, token_ids: list[int]) -> bool:
        finish = _finish_of(piece)
        ids: list[int] = []
        stop = None
        for token_id in token_ids:
            ids.append(token_id)
            is_last = len(ids) == len(token_ids)
            is_stop = is_last and finish is not None and finish[0] == "stop"
            stop = choice.text.take(token_id, is_stop=is_stop)
            if stop is not None:
                finish = ("stop", stop)
                break
        choice.finish = finish
        text = choice.text.read(finished=finish is not None)
        self._count(choice, len(ids))
        self._write(key, choice, ids, text, _extra(choice, piece, len(ids)))
        return stop is None

    def _take_text(self, key: JobKey, choice: Choice, piece: Piece) -> bool:
        """Ids only count: as many as the server says, or one for what came."""
        if self.as_ids and isinstance(choice.text, TextFromIds):
            # It took ids and gives none: its stop texts are ours to find, its text is all we have.
            if choice.emitted:
                raise ServerFault("the server returns no token ids")
            choice.text = TextFromServer(choice.sampling.stop, choice.sampling.min_tokens)
        tokens = len(piece.token_ids) if piece.token_ids is not None else 1
        if piece.token_ids is None and not (piece.text or piece.delta):
            tokens = 0
        finish = _finish_of(piece)
        stop = choice.text.write(piece.text, tokens)
        if stop is not None:
            finish = ("stop", stop)
        choice.finish = finish
        text = choice.text.read(finished=finish is not None)
        extra = {**(_extra(choice, piece, tokens) or {}), **OPAQUE}
        if choice.sampling.parsing is not None and piece.delta:
            extra["deltas"] = [piece.delta]
        self._count(choice, tokens)
        self._write(key, choice, [UNKNOWN_ID] * tokens, text, extra)
        return stop is None

    def _count(self, choice: Choice, tokens: int) -> None:
        """What the watermark and the mean time between two tokens are made of."""
        self.tokens += tokens
        now_s = self._clock.now_s()
        if choice.last_s is not None and tokens:
            took_ms = (now_s - choice.last_s) * 1e3 / tokens
            mean = self.step_ms
            self.step_ms = mean + NEWEST * (took_ms - mean) if mean else took_ms
        choice.last_s = now_s

    def _write(
        self, key: JobKey, choice: Choice, ids: list[int], text: str, extra: dict[str, Any] | None
    ) -> None:
        if not (ids or text or (extra and "deltas" in extra)):
            return
        first_index = choice.index
        choice.index += len(ids)
        self._out.write((*key, choice.number, first_index, ids, text, extra, None))


def _finish_of(piece: Piece) -> Finish | None:
    """OpenAI's reason, and which text or id it was."""
    if piece.finish is None:
        return None
    return piece.finish, piece.stop if piece.finish == "stop" else None


def _extra(choice: Choice, piece: Piece, tokens: int) -> dict[str, Any] | None:
    extra: dict[str, Any] = {}
    if piece.logprobs is not None and tokens:
        extra["logprobs"] = piece.logprobs[:tokens]
    if piece.prompt_logprobs is not None:
        extra["prompt_logprobs"] = piece.prompt_logprobs
    if choice.sampling.structured is not None:
        extra |= OPAQUE
    return extra or None
