"""A side: one way to serve, that a comparison or a sweep can switch to while the server runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from llmserve.bench.driver import Target
from llmserve.knobs import Knobs
from llmserve.service import Service

Setting = Mapping[str, object] | str
"""Knobs by name, or the name of a policy."""


class NeedsRestart(ValueError):
    """The engine's ceiling is below a value: this server cannot try it without a restart."""


@dataclass(frozen=True)
class Side:
    label: str
    target: Target
    enter: Callable[[], Awaitable[None]]
    """Make the server serve this way; it is idle then."""


def changes_of(setting: Setting) -> dict[str, object]:
    return {"policy": setting} if isinstance(setting, str) else dict(setting)


def label_of(setting: Setting) -> str:
    text = " ".join(f"{name}={value}" for name, value in changes_of(setting).items())
    return text or "as it is"


class Switch:
    """Turns a service's knobs from setting to setting, and back to what they were."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._before: Knobs = service.board.current
        self._touched: set[str] = set()

    async def to(self, setting: Setting) -> None:
        """What other settings touched goes back first, so that settings do not add up.
        NeedsRestart where a ceiling does not let it be tried."""
        changes = changes_of(setting)
        whole = {name: self._before.as_dict()[name] for name in self._touched} | changes
        self._touched |= changes.keys()
        if not whole:
            return
        applied = await self._service.set_knobs(whole, source="lab")
        for clamp in applied.clamped:
            if clamp.name in changes:
                raise NeedsRestart(
                    f"{clamp.name}={clamp.asked} is above what this server was started for "
                    f"({clamp.got}: {clamp.why}); start one with a higher ceiling to try it"
                )

    async def back(self) -> None:
        await self.to({})

    def side(self, setting: Setting, target: Target) -> Side:
        """KnobError here where the setting is wrong, before anything runs."""
        self._before.changed(changes_of(setting))
        return Side(label_of(setting), target, lambda: self.to(setting))
