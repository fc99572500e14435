"""Engines that other installed packages bring, by an entry point of the group `llmserve.engines`.

Their names are known without importing anything of theirs. A package that does not load takes
nothing from the other engines: an error names it with the cause where its engine is asked for.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from llmserve.engines.base import EngineError
from llmserve.engines.entry import EngineEntry

GROUP = "llmserve.engines"


def installed() -> dict[str, EntryPoint]:
    """Return the installed entry points by name.

    Looked up anew at each call, for a package may be installed into a running kernel."""
    return {point.name: point for point in entry_points(group=GROUP)}


@cache
def read(point: EntryPoint) -> EngineEntry | EngineError:
    """Return the entry it points to, or what is wrong with it: loaded once, never raised."""
    try:
        entry = point.load()
    except Exception as error:  # of a package of anybody's
        return _wrong(point, f"does not load ({type(error).__name__}: {error})")
    if not isinstance(entry, EngineEntry):
        return _wrong(point, f"is no EngineEntry but a {type(entry).__name__}")
    if entry.name != point.name:
        return _wrong(point, f"names its engine {entry.name!r}, and its entry point another")
    return entry


def package_of(point: EntryPoint) -> str:
    return "an unnamed package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _wrong(point: EntryPoint, what: str) -> EngineError:
    return EngineError(
        f"the engine {point.name!r} of the package {package_of(point)} cannot be used: "
        f"{point.value} {what}. Mend, update or uninstall that package"
    )
