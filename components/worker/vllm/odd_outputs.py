"""Says that vLLM's parser could not read an output, without filling the log with it."""

from components.host.host import Host


class OddOutputs:
    """Counts them all and logs the first one. No text of an output is logged."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._is_said = False

    def say(self, error: BaseException) -> None:
        """A parser raised ``error``; the rest of that choice goes out as content."""
        self._host.counters.add("outputs_unparsed_total")
        if not self._is_said:
            self._is_said = True
            self._host.log.warning("an output cannot be parsed: %s", type(error).__name__)
