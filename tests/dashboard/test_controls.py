from __future__ import annotations

from dataclasses import replace
from typing import Any

import ipywidgets
import msgspec
import pytest

from dashboard.parts import INFO, Parts
from llmserve.core.knobs import SPECS, Applied, Clamp, Knobs
from llmserve.dashboard.controls import ECHO_S, Controls
from llmserve.dashboard.presets import PRESETS, defaults, preset
from llmserve.dashboard.styles import pin_comm


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def controls(parts: Parts) -> Controls:
    return Controls(parts.board, INFO, parts.clock, parts.set)


def test_every_knob_has_a_control_that_shows_its_value(parts: Parts, controls: Controls) -> None:
    shown = {name: control.value() for name, control in controls.by_name.items()}
    assert shown == parts.board.current.as_dict()


@pytest.mark.parametrize("name", SPECS)
def test_every_control_tells_what_its_knob_does_and_its_bounds(
    controls: Controls, name: str
) -> None:
    spec, main = SPECS[name], controls.by_name[name].main
    assert main.tooltip.startswith(spec.help)
    assert spec.low is None or f"{spec.low:g} to " in main.tooltip


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.low is not None])
@pytest.mark.parametrize("bound", ["low", "high"])
def test_every_number_can_be_moved_to_its_bounds(
    parts: Parts, controls: Controls, name: str, bound: str
) -> None:
    if name in INFO.unsupported:
        return
    control = controls.by_name[name]
    if control.none is not None:
        control.none.value = False
    ends = {"low": ("min", control.spec.low), "high": ("max", control.spec.high)}
    trait, limit = ends[bound]
    end = getattr(control.main, trait)
    log = isinstance(control.main, ipywidgets.FloatLogSlider)
    control.main.value = 10**end if log else end
    assert getattr(parts.board.current, name) == INFO.ceilings.get(name, limit) or bound == "low"
    assert getattr(parts.board.current, name) == control.value()
    assert "stays as it is" not in controls.status


def test_moving_a_control_sets_its_knob_and_says_when_it_took_effect(
    parts: Parts, controls: Controls
) -> None:
    parts.step = 812
    controls.by_name["max_num_seqs"].main.value = 8
    assert parts.set_calls == [{"max_num_seqs": 8}]
    assert controls.status == "max_num_seqs: 32 → 8 at step 812 (0.4 ms)"


def test_a_clamped_move_says_what_came_instead_and_the_page_shows_that(parts: Parts) -> None:
    def clamping(**changes: object) -> Applied:
        applied = parts.set(max_num_seqs=64)
        return replace(applied, clamped=(Clamp("max_num_seqs", 200, 64, "out of memory"),))

    controls = Controls(parts.board, INFO, parts.clock, clamping)
    controls.by_name["max_num_seqs"].main.value = 200
    assert "asked 200, got 64 (out of memory)" in controls.status
    assert controls.take_changed()
    assert not controls.take_changed()


def test_a_refused_move_ends_in_a_sentence(parts: Parts) -> None:
    def failing(**changes: object) -> Any:
        raise RuntimeError("the session has ended")

    controls = Controls(parts.board, INFO, parts.clock, failing)
    controls.by_name["policy"].main.value = "priority"
    assert controls.status == "policy stays as it is: the session has ended"
    assert controls.take_changed()


def test_a_knob_that_may_be_none_has_a_box_for_it(parts: Parts, controls: Controls) -> None:
    control = controls.by_name["max_active"]
    assert control.none is not None
    assert control.value() is None
    control.none.value = False
    assert parts.board.current.max_active == control.value() == 32
    control.none.value = True
    assert parts.board.current.max_active is None


def test_the_page_can_report_a_value_in_place_of_none_in_two_steps(
    parts: Parts, controls: Controls
) -> None:
    control = controls.by_name["max_active"]
    assert control.none is not None
    parts.change({"max_active": 9}, "code")
    controls.note_sent(parts.board.current.as_dict())
    control.main.value = 9  # in the order in which widgets/src/controls.ts sets them
    control.none.value = False
    assert parts.board.current.max_active == 9
    assert parts.set_calls == []


def test_a_knob_that_the_engine_lacks_is_disabled_with_the_reason(controls: Controls) -> None:
    (name, reason) = next(iter(INFO.unsupported.items()))
    control = controls.by_name[name]
    assert control.main.disabled
    assert reason in control.main.tooltip
    assert not controls.by_name["max_num_seqs"].main.disabled


def test_a_ceiling_ends_the_slider(controls: Controls) -> None:
    assert controls.by_name["max_num_seqs"].main.max == 256


def test_an_echo_of_an_outdated_value_does_not_set_the_knob_back(
    parts: Parts, controls: Controls
) -> None:
    parts.change({"max_num_seqs": 8}, "code")
    controls.note_sent({"max_num_seqs": 8})
    parts.change({"max_num_seqs": 16}, "code")
    parts.clock.advance(5.0)  # it draws, or its machine is busy
    controls.by_name["max_num_seqs"].main.value = 8  # the page obeyed, and reports it too late
    assert parts.board.current.max_num_seqs == 16
    assert controls.take_changed()  # and will be told 16


def test_moving_to_and_fro_is_obeyed_each_time(parts: Parts, controls: Controls) -> None:
    main = controls.by_name["max_num_seqs"].main
    for value in (8, 32, 8, 32):
        main.value = value
        controls.note_sent(parts.board.current.as_dict())
        assert parts.board.current.max_num_seqs == value
    assert len(parts.set_calls) == 4


def test_an_echo_counts_once_and_then_it_is_a_move(parts: Parts, controls: Controls) -> None:
    main = controls.by_name["max_num_seqs"].main
    parts.change({"max_num_seqs": 8}, "code")
    controls.note_sent({"max_num_seqs": 8})
    main.value = 8  # the page obeyed
    main.value = 16
    main.value = 8
    assert parts.set_calls == [{"max_num_seqs": 16}, {"max_num_seqs": 8}]


def test_a_value_told_long_ago_is_no_echo(parts: Parts, controls: Controls) -> None:
    controls.note_sent({"max_num_seqs": 8})
    parts.clock.advance(ECHO_S)
    controls.by_name["max_num_seqs"].main.value = 8
    assert parts.board.current.max_num_seqs == 8


def test_a_page_that_reports_nothing_leaves_nothing_behind(
    parts: Parts, controls: Controls
) -> None:
    for value in range(1, 200):
        controls.note_sent({"max_num_seqs": value})
        parts.clock.advance(ECHO_S / 4)
    assert len(controls._sent["max_num_seqs"]) <= 4


def test_a_log_slider_gives_round_figures(parts: Parts, controls: Controls) -> None:
    controls.by_name["queue_timeout_s"].main.value = 10**1.55
    assert parts.board.current.queue_timeout_s == 35.48
    controls.by_name["max_num_batched_tokens"].main.value = 10**2.55
    assert parts.board.current.max_num_batched_tokens == 355


def test_a_control_answers_on_the_shell_it_was_asked_on() -> None:
    class Comm:
        _reply_subshell_for: Any = staticmethod(lambda data, default: "the cell's shell")

    class Widget:
        comm = Comm()

    widget: Any = Widget()
    pin_comm(widget)
    assert widget.comm._reply_subshell_for({}, "own shell") == "own shell"


def test_the_controls_take_little_room_in_a_saved_notebook(controls: Controls) -> None:
    import json

    before = len(json.dumps(ipywidgets.Widget.get_manager_state(widgets=[controls.box])))
    assert before < 120_000


def press(controls: Controls, name: str) -> None:
    found = [
        widget for widget in controls._toolbar.widgets if f"llmserve-{name}" in widget._dom_classes
    ]
    found[0].click()


def test_a_preset_sets_its_knobs_and_only_those_that_the_engine_has(
    parts: Parts, controls: Controls
) -> None:
    press(controls, "preset-latency")
    assert parts.board.current.max_num_seqs == 8
    assert parts.board.current.max_num_batched_tokens == 512
    assert "long_prefill_token_threshold" not in parts.set_calls[0]
    assert controls.status.startswith("latency: max_num_seqs: 32 → 8")
    assert controls.take_changed()  # the page is told, and sets the controls


def test_no_preset_asks_for_more_than_the_ceilings(parts: Parts) -> None:
    info = msgspec.structs.replace(INFO, ceilings={"max_num_seqs": 16})
    assert preset("throughput", info)["max_num_seqs"] == 16
    assert defaults(info)["max_num_seqs"] == 16


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_made_of_knobs_within_their_bounds(name: str) -> None:
    Knobs().changed(PRESETS[name])


def test_defaults_set_every_knob_back(parts: Parts, controls: Controls) -> None:
    parts.change({"policy": "priority", "queue_max": 7, "max_active": 3}, "code")
    press(controls, "defaults")
    assert parts.board.current == Knobs()


def test_undo_takes_changes_back_one_by_one_whoever_made_them(
    parts: Parts, controls: Controls
) -> None:
    parts.change({"max_num_seqs": 8, "policy": "priority"}, "http")
    controls.by_name["max_num_seqs"].main.value = 4
    press(controls, "undo")
    assert parts.board.current.max_num_seqs == 8
    press(controls, "undo")
    assert parts.board.current == Knobs()
    press(controls, "undo")
    assert controls.status == "undo: nothing to undo"


def test_a_and_b_take_turns(parts: Parts, controls: Controls) -> None:
    for seqs, words in ((128, "B, throughput"), (32, "A, balanced"), (128, "B, throughput")):
        press(controls, "ab")
        assert parts.board.current.max_num_seqs == seqs
        assert controls.status.startswith(words)


def test_a_button_of_an_ended_session_is_answered_in_words(parts: Parts) -> None:
    def failing(**changes: object) -> Any:
        raise RuntimeError("the session has ended")

    controls = Controls(parts.board, INFO, parts.clock, failing)
    press(controls, "preset-latency")
    assert controls.status == "latency: nothing changed: the session has ended"


def test_only_one_layer_of_knobs_is_unfolded_at_a_time(controls: Controls) -> None:
    accordion = controls._accordion
    assert accordion.selected_index == 0
    assert accordion.titles[0].startswith("Engine")
    sizes = [len(group.children) for group in accordion.children]
    assert sum(sizes) == len(SPECS)
    assert max(sizes) <= 12


def test_closed_controls_watch_the_knobs_no_more(parts: Parts, controls: Controls) -> None:
    before = len(parts.board._watchers)
    controls.close()
    assert len(parts.board._watchers) == before - 1


def test_a_text_knob_is_a_field_that_says_what_is_wrong(parts: Parts, controls: Controls) -> None:
    main = controls.by_name["tenant_weights"].main
    assert isinstance(main, ipywidgets.Text)
    main.value = "gold:3, free:1"
    assert parts.board.current.tenant_weights == "gold:3,free:1"
    main.value = "gold"
    assert "tenant_weights stays as it is" in controls.status
    assert parts.board.current.tenant_weights == "gold:3,free:1"
