"""Buttons over the controls: defaults, undo, presets, and A against B.

Like the controls it writes no widget: what a button does to the knobs comes back to the controls
through the page.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import ipywidgets

from llmserve.core.knobs import Applied, KnobValue
from llmserve.dashboard.presets import PRESETS, History, defaults, preset
from llmserve.dashboard.styles import Styles, pin_comm
from llmserve.engines.base import EngineInfo


class Toolbar:
    """`apply(words, changes)` sets knobs and reports in `words` what for."""

    def __init__(
        self,
        info: EngineInfo,
        look: Styles,
        history: History,
        run: Callable[[str, Callable[..., Applied | None]], None],
    ) -> None:
        self._info = info
        self._history = history
        self._run = run
        self._side = "A"
        self._a = self._choice("balanced", "A", look)
        self._b = self._choice("throughput", "B", look)
        buttons = [
            self._button("Defaults", "defaults", "every knob to its default", look, self._reset),
            self._button("Undo", "undo", "take the last change back, whoever made it", look,
                         self._undo),
            *(
                self._button(name.capitalize(), f"preset-{name}", _words(name, info), look,
                             partial(self._preset, name))
                for name in PRESETS
            ),
        ]  # fmt: skip
        toggle = self._button(
            "A ⇄ B", "ab", "change between the two presets; each change is a mark", look, self._swap
        )
        self.widgets: list[ipywidgets.Widget] = [*buttons, self._a, self._b, toggle]
        self.box = ipywidgets.HBox(
            [*buttons, self._a, self._b, toggle], layout=look.wrapping
        )
        for widget in self.widgets:
            pin_comm(widget)
        self.widgets.append(self.box)

    def _reset(self) -> None:
        self._set("defaults", defaults(self._info))

    def _preset(self, name: str) -> None:
        self._set(name, preset(name, self._info))

    def _swap(self) -> None:
        self._side = "B" if self._side == "A" else "A"
        name = self._a.value if self._side == "A" else self._b.value
        self._set(f"{self._side}, {name}", preset(name, self._info))

    def _undo(self) -> None:
        self._run("undo", self._history.undo)

    def _set(self, words: str, changes: dict[str, KnobValue]) -> None:
        self._run(words, lambda set_knobs: set_knobs(**changes))

    def _button(
        self, text: str, name: str, tooltip: str, look: Styles, press: Callable[[], None]
    ) -> ipywidgets.Button:
        button = ipywidgets.Button(
            description=text, tooltip=tooltip, layout=look.button, style=look.press
        )
        button.add_class(f"llmserve-{name}")
        button.on_click(lambda _: press())
        return button

    def _choice(self, value: str, label: str, look: Styles) -> ipywidgets.Dropdown:
        choice = ipywidgets.Dropdown(
            options=tuple(PRESETS), value=value, description=label, layout=look.choice,
            style=look.short,
        )
        choice.add_class(f"llmserve-side-{label.lower()}")
        return choice


def _words(name: str, info: EngineInfo) -> str:
    return ", ".join(f"{knob}={value}" for knob, value in preset(name, info).items())
