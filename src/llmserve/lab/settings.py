"""A side: one way to serve, that a comparison or a sweep can switch to while the server runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmserve.bench.run.driver import ServiceTarget, Target
from llmserve.core.events import EventBus
from llmserve.core.knobs import Clamp, KnobError, Knobs
from llmserve.serving.service import Service

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


class KnobPanel(Protocol):
    """A server's knobs, wherever it runs."""

    @property
    def knobs(self) -> Knobs: ...

    def lacks(self, name: str) -> str | None:
        """Why turning this knob would change nothing; None where it does."""
        ...

    async def turn(self, names: Collection[str], requested: Knobs) -> Sequence[Clamp]:
        """Return once the engine has adopted these of `requested`: what it could not take."""
        ...


class ServiceKnobPanel:
    """Of the service in this process."""

    def __init__(self, service: Service, source: str = "lab") -> None:
        """source: who turns them, as the events of it say."""
        self._service = service
        self._source = source

    @property
    def knobs(self) -> Knobs:
        return self._service.board.current

    def lacks(self, name: str) -> str | None:
        return self._service.engine.info.unsupported.get(name)

    async def turn(self, names: Collection[str], requested: Knobs) -> Sequence[Clamp]:
        return (await self._service.take_knobs(names, requested, source=self._source)).clamped


@dataclass(frozen=True)
class Stage:
    """A server to be measured: where requests go, and what can be turned."""

    target: Target
    panel: KnobPanel
    engine: str
    model: str


def here(service: Service, bus: EventBus, source: str = "lab") -> Stage:
    info = service.engine.info
    target = ServiceTarget(service, bus)
    return Stage(target, ServiceKnobPanel(service, source), info.engine, info.model_id)


@dataclass(frozen=True)
class CheckedSetting:
    """The names that a setting has, and all knobs with it in force."""

    names: frozenset[str]
    knobs: Knobs


class Switch:
    """Turns a server's knobs from setting to setting, and back to what they were."""

    def __init__(self, panel: KnobPanel) -> None:
        self._panel = panel
        self._before = panel.knobs
        self._touched: set[str] = set()

    async def to(self, setting: CheckedSetting) -> None:
        """What other settings touched goes back first, so that settings do not add up.
        NeedsRestart where a ceiling does not let it be tried."""
        self._touched |= setting.names
        if not self._touched:
            return
        for clamp in await self._panel.turn(self._touched, setting.knobs):
            if clamp.name in setting.names:
                raise NeedsRestart(
                    f"{clamp.name}={clamp.asked} is above what this server was started for "
                    f"({clamp.got}: {clamp.why}); start one with a higher ceiling to try it"
                )

    async def back(self) -> None:
        await self.to(CheckedSetting(frozenset(), self._before))

    def read(self, setting: Setting) -> CheckedSetting:
        """KnobError where a setting is wrong, or where it would change nothing here."""
        changes = changes_of(setting)
        checked = CheckedSetting(frozenset(changes), self._before.changed(changes))
        for name in changes:
            if (why := self._panel.lacks(name)) is not None:
                raise KnobError(name, f"{name} cannot be tried here: {why}")
        return checked

    def side(self, setting: Setting, target: Target) -> Side:
        """KnobError here where the setting is wrong, before anything runs."""
        checked = self.read(setting)
        return Side(label_of(setting), target, lambda: self.to(checked))
