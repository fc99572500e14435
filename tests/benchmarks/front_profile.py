"""Where the serving thread's time goes, by the layers of the front: a deterministic profile.

A thread that samples would see the serving thread where it gives up the interpreter's lock, which
is while it waits. So this is cProfile's: each function's own time, that of a builtin with its
caller, in CPU time. It makes Python calls dearer, and leaves C as it is: its shares say where to
look, and no more. What no Python function accounts for is the loop's own: reading, writing, waking.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from collections import defaultdict

LAYERS = (
    ("decode", ("engines/process/client.py", "engines/process/child.py")),
    ("delivery", ("engines/process/delivery.py", "serving/running.py")),
    ("stream", ("serving/stream.py",)),
    ("events, folds", ("observe/", "serving/publisher.py", "core/events.py", "prometheus_client/")),
    ("scheduling", ("scheduling/", "serving/service.py", "serving/requests.py")),
    ("frames", ("entrypoints/http/",)),
    ("HTTP", ("uvicorn/", "starlette/", "httptools/", "h11/")),
    ("asyncio", ("asyncio/",)),
)
Callers = dict[tuple[str, int, str], tuple[int, int, float, float]]


class LayerProfile:
    """`start` and `stop` on the thread that is looked at."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile()
        self._cpu = 0.0

    async def start(self) -> None:
        self._profile = cProfile.Profile(time.thread_time)
        self._cpu = time.thread_time()
        self._profile.enable()

    async def stop(self) -> dict[str, dict[str, float]]:
        """Seconds by layer, and by the functions that took most of it."""
        self._profile.disable()
        cpu = time.thread_time() - self._cpu
        layers, functions = defaultdict[str, float](float), defaultdict[str, float](float)
        stats: dict[tuple[str, int, str], tuple[int, int, float, float, Callers]]
        stats = pstats.Stats(self._profile).stats  # type: ignore[attr-defined]  # of old
        for (path, line, name), (_, _, own, _, callers) in stats.items():
            if path == "~":
                for (caller, _, _), told in callers.items():
                    layers[layer_of(caller)] += told[2]
                functions[name] += own
            else:
                layers[layer_of(path)] += own
                functions[f"{path[-44:]}:{line} {name}"] += own
        rest = max(0.0, cpu - sum(layers.values()))
        return {
            "layer": {**_most(layers), "the loop's own, sockets": rest},
            "function": _most(functions),
        }


def layer_of(path: str) -> str:
    for layer, parts in LAYERS:
        if any(part in path for part in parts):
            return layer
    return "others"


def _most(seconds: dict[str, float]) -> dict[str, float]:
    return dict(sorted(seconds.items(), key=lambda one: -one[1])[:15])
