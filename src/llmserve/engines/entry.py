"""The registry entry of one engine: its name, how it is made, its options, what it can do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from llmserve.engines.base import Engine, EngineError, abilities

T = TypeVar("T")

GIVEN = ("sink", "clock")
"""What every engine is made with, besides its options."""

MakeEngine = Callable[..., Engine]
"""Takes `sink`, `clock` and options by keyword: mostly the engine's class."""


@dataclass(frozen=True, slots=True)
class EngineOption:
    """A start-up option: what it is unless set, and the words it may be where those are few."""

    default: object = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """An engine that can be chosen by name. All that any face, error or page says comes from here.

    Its module shall import nothing heavy: `load` does, when the engine is wanted.
    """

    name: str
    summary: str
    """What it runs and where, in a few words."""
    load: Callable[[], MakeEngine]
    """Imports the engine and returns its class."""
    choose: Callable[[Mapping[str, object]], MakeEngine] | None = None
    """Imports and returns the class for these options, where they decide it; all can the same."""
    options: Callable[[], Mapping[str, EngineOption]] | None = None
    """By name, and without heavy imports; None reads them from the keywords of what `load`
    returns."""
    install: str = "comes with llmserve"
    """What to do where `load` fails."""
    default_model: str = "the bundled model"
    """What `model=None` is called while it starts."""
    auto: Callable[[], bool] | None = None
    """Whether "auto" takes it here. Asked of llmserve's own engines only, in their order."""

    def loaded(self) -> MakeEngine:
        """Import the engine; EngineError where it does not import, with what to install."""
        return self._imported(self.load)

    def loaded_for(self, options: Mapping[str, object]) -> MakeEngine:
        """As `loaded`, but the class that these options ask for; ValueError for a wrong one."""
        return self.loaded() if self.choose is None else self.choose(options)

    def known_options(self) -> Mapping[str, EngineOption]:
        """Return its start-up options; EngineError as `loaded`."""
        return keywords(self.loaded()) if self.options is None else self._imported(self.options)

    def abilities(self) -> tuple[str, ...]:
        """What its class can do beyond `Engine`, as words to show. EngineError as `loaded`."""
        return abilities(self.loaded())

    def _imported(self, part: Callable[[], T]) -> T:
        try:
            return part()
        except Exception as error:  # of a package of anybody's
            cause = f"{type(error).__name__}: {error}"
            raise EngineError(
                f"the {self.name} engine does not import ({cause}). To install it: {self.install}"
            ) from error


def keywords(made: Callable[..., object]) -> dict[str, EngineOption]:
    """The options that a class or function takes as keywords."""
    return {
        name: EngineOption(
            default=None if one.default is one.empty else one.default,
            choices=("True", "False") if one.annotation is bool else literal_words(one.annotation),
        )
        for name, one in _parameters(made).items()
        if name not in GIVEN and one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)
    }


def takes_any(made: Callable[..., object]) -> bool:
    """Whether it takes whatever keyword comes, and so checks them itself."""
    return any(one.kind is one.VAR_KEYWORD for one in _parameters(made).values())


def literal_words(hint: Any) -> tuple[str, ...]:
    """Return the words of a Literal, alone or in a union."""
    return tuple(
        word
        for part in get_args(hint)
        for word in ([part] if isinstance(part, str) else literal_words(part))
    )


def _parameters(made: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(made, eval_str=True).parameters
    except NameError:  # an annotation that is imported for type checkers only
        return inspect.signature(made).parameters
