"""`switchyard engine list` asks page by page, and says so when any page was not the whole truth."""

from typing import Any

import pytest

from components.cli import engine_list
from schemas.engines import (
    ENGINES_PAGE_MAX,
    EngineRecord,
    KnownEngine,
    ListEngines,
    ListEnginesReply,
)


def known(name: str) -> KnownEngine:
    record = EngineRecord(engine=name, process_epoch=1, state="READY", role="decode", model="m")
    return KnownEngine(record=record, heard=True, missing=False)


class Registries:
    """Two of them answer in turn."""

    def __init__(self, *complete: bool) -> None:
        self.complete = list(complete)
        self.asked: list[ListEngines] = []

    async def ask(self, _subject: str, asked: ListEngines, _reply: Any, *, timeout_s: float) -> Any:
        assert timeout_s > 0
        self.asked.append(asked)
        number = len(self.asked)
        return ListEnginesReply(
            engines=(known(f"decode-{number}"),),
            more=number < len(self.complete),
            complete=self.complete[number - 1],
        )


@pytest.mark.parametrize("complete", [(True,), (False, True), (True, False), (True, True)])
async def test_a_list_is_complete_when_each_of_its_pages_is(complete: tuple[bool, ...]):
    bus: Any = Registries(*complete)
    engines, whole = await engine_list._all(bus, missing=True)
    assert [engine.record.engine for engine in engines] == ["decode-1", "decode-2"][: len(complete)]
    assert whole is all(complete)
    assert {(asked.limit, asked.missing) for asked in bus.asked} == {(ENGINES_PAGE_MAX, True)}
