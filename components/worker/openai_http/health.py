"""Whether the server is well, and what it has done since the agent began to look. Pure.

A refused connection says at once that nobody is there; silence must last for a few polls, since a
busy server may be slow to answer once.
"""

from components.worker.openai_http.metrics import ServerLoad


class Health:
    """Fed with polls. ``progress`` counts tokens and never falls, over restarts of the server."""

    def __init__(self, polls_failed_max: int) -> None:
        self._failed_max = polls_failed_max
        self._failed = 0
        self.is_up = True
        self.load = ServerLoad()
        self._last: ServerLoad | None = None
        self.progress = 0
        self.hit_tokens = 0
        self.prompt_tokens = 0

    def on_failure(self, *, refused: bool) -> bool:
        """A poll failed; True when the server counts as gone from now on."""
        self._failed += 1
        if not self.is_up or not (refused or self._failed >= self._failed_max):
            return False
        self.is_up = False
        self.load = ServerLoad()
        return True

    def on_answer(self, load: ServerLoad) -> bool:
        """A poll was answered; True when the server is back."""
        before, self._last = self._last or load, load
        self.load = load
        self.progress += _grown(before.generated_tokens, load.generated_tokens)
        self.progress += _grown(before.prompt_tokens, load.prompt_tokens)
        self.hit_tokens += _grown(before.prefix_hit_tokens, load.prefix_hit_tokens)
        self.prompt_tokens += _grown(before.prefix_query_tokens, load.prefix_query_tokens)
        self._failed = 0
        came_back, self.is_up = not self.is_up, True
        return came_back


def _grown(before: int, now: int) -> int:
    """A sum that is lower than before began anew."""
    return now - before if now >= before else now
