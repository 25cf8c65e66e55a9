"""One choice of a job in a simulated engine: from the model's tokens to frame entries."""

from typing import Any

from components.domain.story import Story
from components.worker.engine import Job
from schemas.body import SamplingParameters
from schemas.frames import Entry


class Writing:
    """A story on its way out. ``model_id`` is its name in the engine model."""

    __slots__ = (
        "admitted",
        "attempt",
        "cached_tokens",
        "choice",
        "index",
        "model_id",
        "request_id",
        "story",
    )

    def __init__(self, job: Job, choice: int, sampling: SamplingParameters) -> None:
        emitted = job.emitted.get(choice)
        ids = emitted.token_ids if emitted else ()
        self.request_id = job.request_id
        self.attempt = job.attempt
        self.choice = choice
        self.model_id = f"{job.request_id}/{job.attempt}/{choice}"
        self.index = len(ids)
        self.cached_tokens = 0
        self.admitted = False
        self.story = Story(job.prompt, ids, sampling, choice)

    def write(self, steps: int) -> Entry:
        """The entry for the next ``steps`` tokens, or as many as there are."""
        story = self.story
        token_id, text, logprobs, finish = story.next()
        ids = [token_id]
        extra: dict[str, Any] | None = None if logprobs is None else {"logprobs": [logprobs]}
        while steps > 1 and finish is None:
            steps -= 1
            token_id, more, logprobs, finish = story.next()
            ids.append(token_id)
            text += more
            if extra is not None:
                extra["logprobs"].append(logprobs)
        first_index = self.index
        self.index += len(ids)
        end = None if finish is None else [*finish, self.cached_tokens]
        return self.request_id, self.attempt, self.choice, first_index, ids, text, extra, end

    def end(self) -> Entry:
        """The entry of a choice that needed no more tokens."""
        assert self.story.finish is not None
        end = [*self.story.finish, 0]
        return self.request_id, self.attempt, self.choice, self.index, [], "", None, end
