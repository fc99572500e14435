"""One control per knob, generated from `llmserve.core.knobs.SPECS`, with ipywidgets.

A control's observer runs in whichever thread the page's message came in on: the main thread, or a
subshell's while a cell runs. The other way, from a knob to its control, nothing here writes a
control: a write from a background thread would move the control's messages to a thread that never
reads them. The dashboard's page sets the controls instead (`widgets/src/controls.ts`), and the
browser then reports the value here, as an echo that must not count as a user's move.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets

from llmserve.core.clock import Clock
from llmserve.core.knobs import SPECS, Applied, KnobBoard, KnobValue, Layer, Spec
from llmserve.dashboard.page_link import GONE_S
from llmserve.dashboard.presets import History
from llmserve.dashboard.styles import Styles, pin_comm
from llmserve.dashboard.toolbar import Toolbar
from llmserve.engines.base import EngineInfo

log = logging.getLogger(__name__)

ECHO_S = GONE_S
"""For how long a value that the page was sent may come back as an echo: a page may be slow."""
_NARROW = 512
_LAYERS: dict[Layer, str] = {
    "engine": "Engine: what one step computes",
    "scheduler": "Scheduler: order of dispatch",
    "admission": "Admission: whether a request may wait",
}


class Controls:
    """Shows one control per knob in `box`; `status` says in one line what the last move came to."""

    def __init__(
        self, board: KnobBoard, info: EngineInfo, clock: Clock, set_knobs: Callable[..., Applied]
    ) -> None:
        self._board = board
        self._clock = clock
        self._set = set_knobs
        self._lock = threading.Lock()
        self._sent: dict[str, list[tuple[float, KnobValue]]] = {}
        self.status = ""
        self._changed = False
        look = Styles()
        self.by_name = {
            spec.name: Control(spec, getattr(board.current, spec.name), info, look)
            for spec in SPECS.values()
        }
        history = History()
        self._unwatch = board.watch(history.note)
        self._toolbar = Toolbar(info, look, history, self._pressed)
        self.box = self._arrange(look)
        for control in self.by_name.values():
            control.observe(self._moved)

    def places(self) -> dict[str, dict[str, object]]:
        """Per knob, what a page needs to set its controls."""
        return {name: control.place() for name, control in self.by_name.items()}

    def take_changed(self) -> bool:
        """Whether the page must be sent all values again, since a control may show another."""
        with self._lock:
            changed, self._changed = self._changed, False
        return changed

    def note_sent(self, values: Mapping[str, KnobValue]) -> None:
        """Note what the page is sent: controls that show another value will report it here."""
        now = self._clock.now()
        other = {n: v for n, v in values.items() if v != self.by_name[n].value()}
        with self._lock:
            for name, value in other.items():
                lately = [(t, v) for t, v in self._sent.get(name, ()) if t > now - ECHO_S]
                self._sent[name] = [*lately, (now, value)]

    def end(self) -> None:
        """The session is over: what cannot be turned any more looks so, after a reload too."""
        for widget in self._widgets():
            if widget.has_trait("disabled"):
                widget.disabled = True

    def close(self) -> None:
        self._unwatch()
        for widget in self._widgets():
            widget.close()

    def _moved(self, name: str) -> None:
        value = self.by_name[name].value()
        echo = self._take_echo(name, value)
        if value == getattr(self._board.current, name):
            return
        if not echo:  # an echo of a value that has changed again since must not set it back
            try:
                self.status = str(self._set(**{name: value}))
            except Exception as error:  # a move must end in a sentence, whatever went wrong
                log.debug("a control's move failed", exc_info=True)
                self.status = f"{name} stays as it is: {error or type(error).__name__}"
        with self._lock:
            self._changed = True

    def _pressed(self, words: str, act: Callable[..., Applied | None]) -> None:
        """What a button came to, in the status line; the page then sets the controls."""
        try:
            applied = act(self._set)
            outcome = "nothing to undo" if applied is None else str(applied)
        except Exception as error:  # a press must end in a sentence, whatever went wrong
            log.debug("a button's press failed", exc_info=True)
            outcome = f"nothing changed: {error or type(error).__name__}"
        self.status = f"{words}: {outcome}"
        with self._lock:
            self._changed = True

    def _take_echo(self, name: str, value: KnobValue) -> bool:
        """Whether the page was sent this value lately; it and older ones are then done with."""
        oldest = self._clock.now() - ECHO_S
        with self._lock:
            sent = [(t, v) for t, v in self._sent.pop(name, ()) if t > oldest]
            places = [i for i, (_, v) in enumerate(sent) if v == value]
            self._sent[name] = sent[places[0] + 1 :] if places else sent
        return bool(places)

    def _arrange(self, look: Styles) -> ipywidgets.Box:
        groups = []
        for layer in _LAYERS:
            rows = [c.row for c in self.by_name.values() if c.spec.layer == layer]
            groups.append(ipywidgets.Box(rows, layout=look.group))
        self._accordion = ipywidgets.Accordion(
            groups, titles=tuple(_LAYERS.values()), selected_index=0, layout=look.full
        )
        box = ipywidgets.VBox([self._toolbar.box, self._accordion], layout=look.full)
        box.add_class("llmserve-controls")
        return box

    def _widgets(self) -> list[ipywidgets.Widget]:
        parts = [w for control in self.by_name.values() for w in control.widgets]
        return [
            *parts, *self._toolbar.widgets, *self._accordion.children, self._accordion, self.box
        ]


class Control:
    """The widgets of one knob: a value, its unit, and a checkbox where None is allowed."""

    def __init__(self, spec: Spec, value: KnobValue, info: EngineInfo, look: Styles) -> None:
        self.spec = spec
        reason = info.unsupported.get(spec.name)
        ceiling = info.ceilings.get(spec.name)
        self.main = _value_widget(spec, value, ceiling, look)
        self.main.tooltip = _tooltip(spec, ceiling, reason)
        self.main.disabled = reason is not None
        self.main.add_class(f"llmserve-knob-{spec.name}")
        note = f"not here: {reason}" if reason else spec.unit
        fits = len(note) <= len("requests/s")
        unit = ipywidgets.Label(
            note, layout=look.unit if fits else look.plain, style=look.label, tooltip=note
        )
        self.widgets: list[ipywidgets.Widget] = [self.main, unit]
        self.none: ipywidgets.Checkbox | None = None
        if spec.nullable is not None:
            self.none = ipywidgets.Checkbox(
                value is None, description=spec.nullable, disabled=reason is not None,
                indent=False, layout=look.check, style=look.checkbox,
            )
            self.none.add_class(f"llmserve-none-{spec.name}")
            self.widgets.append(self.none)
            if reason is None:  # in the browser, so that no thread writes a control
                link = ipywidgets.jslink((self.none, "value"), (self.main, "disabled"))
                self.widgets.append(link)
        shown = [w for w in self.widgets if isinstance(w, ipywidgets.DOMWidget)]
        self.row = ipywidgets.HBox(shown, layout=look.plain)
        self.widgets.append(self.row)
        for widget in (self.main, self.none):
            if widget is not None:
                pin_comm(widget)

    def place(self) -> dict[str, object]:
        """The controls' model ids; a choice is set in the browser by its place among them all."""
        return {
            "value": self.main.model_id,
            "none": None if self.none is None else self.none.model_id,
            "choices": self.spec.choices or None,
        }

    def value(self) -> KnobValue:
        """The knob's value that the controls show, rounded to what a person would have typed."""
        if self.none is not None and self.none.value:
            return None
        shown = self.main.value
        if self.spec.type in ("choice", "text"):
            return str(shown)
        low, high = self.spec.low, self.spec.high
        assert low is not None  # every number has bounds
        assert high is not None
        number = round(shown) if self.spec.type == "int" else float(f"{shown:.4g}")
        within = min(max(number, low), high)
        return int(within) if self.spec.type == "int" else float(within)

    def observe(self, moved: Callable[[str], None]) -> None:
        """Call `moved(name)` when the knob's value is another: a slider behind a ticked "none"
        changes nothing, and the page moves it there before it takes the tick away."""
        last = [self.value()]

        def changed(_: object) -> None:
            before, last[0] = last[0], self.value()
            if last[0] != before:
                moved(self.spec.name)

        for widget in (self.main, self.none):
            if widget is not None:
                widget.observe(changed, names="value")


def _value_widget(spec: Spec, value: KnobValue, ceiling: int | None, look: Styles) -> Any:
    common = {"description": spec.name, "layout": look.wide}
    if spec.type == "choice":
        return ipywidgets.Dropdown(options=spec.choices, value=value, style=look.text, **common)
    if spec.type == "text":
        return ipywidgets.Text(
            str(value), placeholder=spec.unit, continuous_update=False, style=look.line, **common
        )
    assert spec.low is not None  # every number has bounds
    assert spec.high is not None
    high = min(spec.high, ceiling) if ceiling is not None else spec.high
    start = value
    if value is None:  # what an unchecked "none" begins with: enough to go on serving
        start = min(high, 8192 if spec.unit == "tokens" else 32)
    whole = spec.type == "int"
    if whole and high - spec.low <= _NARROW:
        return ipywidgets.IntSlider(
            start, int(spec.low), int(high), style=look.slider, continuous_update=False, **common
        )
    if spec.low > 0:  # a wide range: each decade gets the same length
        return ipywidgets.FloatLogSlider(
            start, min=math.log10(spec.low), max=math.log10(high), step=0.05,
            readout_format=",.0f" if whole else ",.2f", style=look.slider,
            continuous_update=False, **common,
        )
    text = ipywidgets.BoundedIntText if whole else ipywidgets.BoundedFloatText
    step = 1 if whole else 0.5
    return text(start, min=spec.low, max=high, step=step, style=look.text, **common)


def _tooltip(spec: Spec, ceiling: int | None, reason: str | None) -> str:
    parts = [spec.help]
    if spec.low is not None and spec.high is not None:
        high = spec.high if ceiling is None else min(ceiling, spec.high)
        parts.append(f"{spec.low:g} to {high:,g} {spec.unit}".rstrip())
    if ceiling is not None:
        parts.append("the highest value is set when the engine starts")
    if reason is not None:
        parts.append(f"no effect with this engine: {reason}")
    return " · ".join(parts)
