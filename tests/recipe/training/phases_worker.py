"""recipe/train.py on a rank, which says after each phase how much of the engine's is still there: the engine, model, optimizer."""

from __future__ import annotations

import weakref
from typing import Any

from recipe import train
from recipe.base.ranks import leave
from recipe.training import start

seen: list[Any] = []
build, free = start.build_engine, start._free_memory


def build_engine(*arguments: Any, **words: Any) -> Any:
    engine = build(*arguments, **words)
    seen[:] = [weakref.ref(part) for part in (engine, engine.module, engine.optimizer)]
    return engine


def free_memory() -> None:
    free()
    print("still there:", [type(part()).__name__ for part in seen if part() is not None], flush=True)


start.build_engine, start._free_memory = build_engine, free_memory
leave(train.main())
