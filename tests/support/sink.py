"""What an engine under test has said: a sink that keeps everything."""

import time


class Sink:
    """``calls``: when it was called, and with how many entries."""

    def __init__(self):
        self.entries, self.events, self.calls = [], [], []

    def __call__(self, entries, events):
        self.calls.append((time.monotonic(), len(entries)))
        self.entries += entries
        self.events += events

    def of(self, request_id="r1", choice=0):
        return [e for e in self.entries if e[0] == request_id and e[2] == choice]

    def ids(self, *which):
        return [i for e in self.of(*which) for i in e[4]]

    def text(self, *which):
        return "".join(e[5] for e in self.of(*which))

    def said(self, *which):
        """(ids, text)"""
        return self.ids(*which), self.text(*which)

    def finish(self, *which):
        entries = self.of(*which)
        return entries[-1][7] if entries else None
