"""What is known of one request when it has ended. Times are seconds on the generator's clock."""

from array import array
from dataclasses import dataclass, field

import xxhash


@dataclass(slots=True)
class Record:
    """One request as the client lived it.

    ``arrival_s`` is when it should have been sent; every latency counts from there, so a generator
    or a server that falls behind cannot hide waiting time (coordinated omission). ``gaps_s`` holds
    the pauses between the pieces of text after the first. ``error`` is None or a code.
    """

    index: int
    arrival_s: float
    prompt_tokens: int
    output_tokens_asked: int
    sent_s: float = 0.0
    first_s: float | None = None
    last_s: float | None = None
    done_s: float | None = None
    output_tokens: int = 0
    prompt_tokens_seen: int | None = None
    gaps_s: "array[float]" = field(default_factory=lambda: array("d"))
    pieces: int = 0
    error: str | None = None
    error_text: str = ""
    text_hash: "xxhash.xxh3_64" = field(default_factory=xxhash.xxh3_64)

    @property
    def ok(self) -> bool:
        return self.error is None and self.done_s is not None

    @property
    def ttft_s(self) -> float | None:
        """Arrival to the first piece of text."""
        return None if self.first_s is None else self.first_s - self.arrival_s

    @property
    def e2e_s(self) -> float | None:
        """Arrival to the end of the stream."""
        return None if self.done_s is None else self.done_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None below two tokens."""
        if self.first_s is None or self.last_s is None or self.output_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.output_tokens - 1)

    def on_text(self, text: str, now_s: float) -> None:
        """A piece of the answer came."""
        if self.last_s is None:
            self.first_s = now_s
        else:
            self.gaps_s.append(now_s - self.last_s)
        self.last_s = now_s
        self.pieces += 1
        self.text_hash.update(text.encode("utf-8", "surrogatepass"))

    def to_plain(self) -> dict[str, object]:
        """For ``--save``; ``arrival_s`` and ``sent_s`` count from the start of the run."""

        def rounded(value_s: float | None) -> float | None:
            return None if value_s is None else round(value_s, 6)

        return {
            "index": self.index,
            "arrival_s": rounded(self.arrival_s),
            "sent_s": rounded(self.sent_s),
            "ttft_s": rounded(self.ttft_s),
            "tpot_s": rounded(self.tpot_s),
            "e2e_s": rounded(self.e2e_s),
            "prompt_tokens": self.prompt_tokens_seen or self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "output_tokens_asked": self.output_tokens_asked,
            "pieces": self.pieces,
            "text_hash": self.text_hash.hexdigest(),
            "error": self.error,
            "error_text": self.error_text,
        }
