"""The text of one choice, made here from its ids, exactly as vLLM makes it.

It is made here, and not taken from the server, because a continuation must bring it to the state
after what was emitted before: then no text is said twice, none that lagged is lost (half of a
character, what may be the beginning of a stop text), and a stop text across the seam is found.
Engines in process keep the same rule, so a stream may go on at either.
"""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from components.worker.openai_http.card import ModelFiles
from schemas.body import SamplingParameters


class StopSearch:
    """Released text lags behind by what may still become a stop text."""

    def __init__(self, stops: Sequence[str], min_tokens: int) -> None:
        self._stops = stops
        self._min_tokens = min_tokens
        self._lag = max((len(stop) for stop in stops), default=1) - 1
        self._text = ""
        self._tokens = 0
        self._said = 0

    def take(self, text: str, tokens: int = 1) -> str | None:
        """More text; the stop text that it completed. Nothing of that one is released."""
        self._tokens += tokens
        before = len(self._text)
        self._text += text
        if not text or self._tokens <= self._min_tokens:
            return None
        found = [
            (at + len(stop), place, at)
            for place, stop in enumerate(self._stops)
            if (at := self._text.find(stop, max(0, before + 1 - len(stop)))) >= 0
        ]
        if not found:
            return None
        _, place, at = min(found)
        self._text = self._text[:at]
        return self._stops[place]

    def read(self, *, finished: bool = False) -> str:
        """What became certain since the last call."""
        end = len(self._text) - (0 if finished else self._lag)
        if end <= self._said:
            return ""
        new = self._text[self._said : end]
        self._said = end
        return new


class TextFromIds:
    """``components.worker.vllm.backend.Text`` by the model's ``tokenizer.json``."""

    def __init__(
        self, model: ModelFiles, prompt: Sequence[int], sampling: SamplingParameters
    ) -> None:
        self._tokenizer = model.tokenizer
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        self._search = StopSearch(sampling.stop, sampling.min_tokens)

    def take(self, token_id: int, *, is_stop: bool = False) -> str | None:
        """One more id; the stop text that it completed, if any. A stop id adds no text."""
        return self._search.take("" if is_stop else self._decoded(token_id))

    def write(self, text: str, tokens: int) -> str | None:
        """The server's own text of these ids is not needed."""
        return None

    def _decoded(self, token_id: int) -> str:
        try:
            return self._stream.step(self._tokenizer, token_id) or ""
        except Exception:  # noqa: BLE001  (the library has no other; vLLM begins anew as well)
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self._tokenizer, token_id) or ""

    def read(self, *, finished: bool = False) -> str:
        """What became certain since the last call; everything when ``finished``."""
        return self._search.read(finished=finished)


class TextFromServer:
    """The text of a choice whose ids nobody knows, as the server writes it.

    The server searches for stop texts itself unless ``stops`` are given.
    """

    def __init__(self, stops: Sequence[str] = (), min_tokens: int = 0) -> None:
        self._search = StopSearch(stops, min_tokens)

    def take(self, token_id: int, *, is_stop: bool = False) -> str | None:
        """Ids are no text here."""
        return None

    def write(self, text: str, tokens: int) -> str | None:
        """What the server wrote with so many tokens; the stop text that it completed, if any."""
        return self._search.take(text, tokens)

    def read(self, *, finished: bool = False) -> str:
        """What became certain since the last call; everything when ``finished``."""
        return self._search.read(finished=finished)
