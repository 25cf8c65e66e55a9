"""Faults planted in the running product, for the controls of the proofs. Never in the product.

A process whose ``PYTHONPATH`` names this folder imports this file at its start. ``PLANTED_FAULT``
names one fault; its function gets the module it changes, right after that module was imported.
"""

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

Fault = Callable[[ModuleType], None]
FAULTS: dict[str, tuple[str, Fault]] = {}


def fault(name: str, module: str) -> Callable[[Fault], Fault]:
    """Register a function that spoils ``module``."""

    def register(function: Fault) -> Fault:
        FAULTS[name] = (module, function)
        return function

    return register


class _Spoiler(importlib.abc.MetaPathFinder):
    """Runs a fault's function when its module is imported, by whomever."""

    def __init__(self, module: str, function: Fault) -> None:
        self._module = module
        self._function = function

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module
        function = self._function

        def exec_module(module: ModuleType) -> None:
            execute(module)
            function(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _plant() -> None:
    name = os.environ.get("PLANTED_FAULT")
    if not name:
        return
    if name not in FAULTS:
        sys.exit(f"no such fault: {name}")
    sys.meta_path.insert(0, _Spoiler(*FAULTS[name]))


@fault("router_hidden_randomness", "components.router.core")
def _router_hidden_randomness(module: ModuleType) -> None:
    import random  # noqa: PLC0415

    place = module.RouterCore._place

    def spoiled(self: object, card: object, shard: str, now_s: float) -> object:
        return place(self, card, shard, now_s + random.random())

    module.RouterCore._place = spoiled


@fault("scheduler_opens_a_socket", "components.scheduler.service")
def _scheduler_opens_a_socket(module: ModuleType) -> None:
    import socket  # noqa: PLC0415

    vars(module)["back_door"] = socket.create_server(("127.0.0.1", 0))


_plant()
