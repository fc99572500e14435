from __future__ import annotations

from typing import Any

import pytest

from dashboard.parts import Desk
from llmserve.dashboard.charts import static
from llmserve.dashboard.codec import decode
from llmserve.dashboard.page_link import PATIENCE_S
from llmserve.dashboard.panels import COLUMNS


@pytest.fixture
def desk() -> Desk:
    return Desk.lay()


def hello(desk: Desk) -> dict[str, Any]:
    desk.wire.hear({"kind": "hello"})
    (message,) = desk.wire.take()
    return message[0]


def delta(desk: Desk) -> dict[str, Any]:
    desk.update()
    ((content, buffers),) = desk.wire.take()
    assert decode(buffers[0]).seq == content["seq"]
    return content


def test_a_page_that_says_hello_gets_everything_so_far(desk: Desk) -> None:
    for _ in range(5):
        desk.parts.play(0.2, ttft_s=0.1)
        desk.recorder.sample()
    desk.parts.change({"max_num_seqs": 8}, "http")
    desk.recorder.sample()
    desk.wire.hear({"kind": "hello"})
    ((content, buffers),) = desk.wire.take()
    assert content["kind"] == "snapshot"
    assert content["columns"] == COLUMNS
    assert content["knobs"]["max_num_seqs"] == 8
    assert [mark["changed"] for mark in content["marks"]] == [{"max_num_seqs": [32, 8]}]
    assert len(decode(buffers[0]).times) == 7


def test_an_update_is_one_row_and_nothing_that_did_not_change(desk: Desk) -> None:
    desk.parts.play(0.2, ttft_s=0.1)
    desk.update()
    snapshot = hello(desk)
    desk.parts.play(0.2, ttft_s=0.1)
    desk.update()
    ((content, buffers),) = desk.wire.take()
    assert content == {"kind": "delta", "seq": snapshot["seq"] + 1}
    assert decode(buffers[0]).values.shape == (1, len(COLUMNS))


def test_nothing_is_sent_where_no_page_listens(desk: Desk) -> None:
    desk.update()
    assert desk.wire.take() == []


def test_a_silent_page_gets_nothing_until_it_says_hello_and_then_all_it_missed(desk: Desk) -> None:
    hello(desk)
    desk.parts.clock.advance(PATIENCE_S + 0.1)
    for _ in range(20):
        desk.update()
    assert desk.wire.take() == []
    desk.wire.hear({"kind": "hello"})
    ((_, buffers),) = desk.wire.take()
    assert len(decode(buffers[0]).times) == 21


def test_acknowledging_keeps_the_updates_coming(desk: Desk) -> None:
    seq = hello(desk)["seq"]
    for _ in range(10):
        desk.parts.clock.advance(1.0)
        desk.wire.hear({"kind": "ack", "seq": seq})
        seq = delta(desk)["seq"]


def test_a_knob_changed_elsewhere_rides_the_next_update_with_its_mark(desk: Desk) -> None:
    hello(desk)
    desk.parts.change({"policy": "priority"}, "magic")
    content = delta(desk)
    assert content["knobs"]["policy"] == "priority"
    assert content["marks"][0]["source"] == "magic"
    assert "knobs" not in delta(desk)


def test_a_moved_control_shows_its_status_on_the_page(desk: Desk) -> None:
    hello(desk)
    desk.controls.by_name["max_num_seqs"].main.value = 8
    assert delta(desk)["status"].startswith("max_num_seqs: 32 → 8")


def test_an_empty_session_is_told_apart_from_one_that_served(desk: Desk) -> None:
    assert hello(desk)["empty"] is True
    desk.parts.play(0.2, ttft_s=0.1)
    assert delta(desk)["empty"] is False
    assert "empty" not in delta(desk)


def test_an_ended_session_is_told_now_and_after_a_reload(desk: Desk) -> None:
    hello(desk)
    desk.charts.end("This session has ended.")
    ((content, _),) = desk.wire.take()
    assert (content["ended"], content["status"]) == (True, "This session has ended.")
    assert hello(desk)["ended"] is True


def test_the_module_is_sent_to_who_asks_for_it(desk: Desk) -> None:
    desk.wire.hear({"kind": "module"})
    ((content, buffers),) = desk.wire.take()
    assert content == {"kind": "module"}
    assert buffers[0] == static("dashboard.js")


def test_what_a_notebook_saves_of_the_charts_is_small(desk: Desk) -> None:
    import json

    assert len(json.dumps(desk.charts.get_state(), default=str)) < 2_000


def test_a_missing_bundle_names_the_cure() -> None:
    with pytest.raises(RuntimeError, match=r"python widgets/build_hook\.py"):
        static("no_such_bundle.js")


def test_a_picture_of_a_page_that_is_not_there_is_none(desk: Desk) -> None:
    assert desk.charts.picture(timeout_s=60) is None


def test_unknown_and_untimely_messages_do_no_harm(desk: Desk, caplog: Any) -> None:
    desk.wire.hear({"kind": "dance"})
    desk.wire.hear({"kind": "picture", "id": 5}, b"late")
    assert "dance" in caplog.text
    assert hello(desk)["kind"] == "snapshot"


def test_two_dashboards_of_one_recorder_number_their_messages_apart(desk: Desk) -> None:
    from dashboard.parts import ABOUT, INFO, Wire
    from llmserve.dashboard.charts import Charts
    from llmserve.dashboard.controls import Controls
    from llmserve.dashboard.playground import Playground

    parts = desk.parts
    controls = Controls(parts.board, INFO, parts.clock, parts.set)
    idle = Playground(parts.service, parts.runtime)
    other = Charts(desk.recorder, parts.board, controls, parts.clock, ABOUT, idle)
    wire = Wire(other)
    hello(desk)
    delta(desk)
    wire.hear({"kind": "hello"})
    ((content, _),) = wire.take()
    assert (content["kind"], content["seq"]) == ("snapshot", 1)
    assert desk.wire.take() == []


def test_the_tape_goes_apart_whole_at_first_and_then_what_is_new(desk: Desk) -> None:
    desk.parts.play(0.2, ttft_s=0.1)
    desk.wire.hear({"kind": "hello"})
    ((whole, (steps, _)),) = desk.wire.take("tape")
    assert (whole["whole"], whole["seq"], len(steps)) == (True, 1, 10 * 32)
    assert [row[1] for row in whole["rows"]] == ["r1"]
    desk.update()
    assert desk.wire.take("tape") == []
    desk.parts.play(0.2, ttft_s=0.1)
    desk.update()
    ((more, _),) = desk.wire.take("tape")
    assert (more["whole"], more["seq"], more["first"]) == (False, 2, 10)
    assert [row[1] for row in more["rows"]] == ["r2"]


def test_a_page_that_lost_some_of_the_tape_gets_it_whole_again(desk: Desk) -> None:
    desk.parts.play(0.2, ttft_s=0.1)
    hello(desk)
    desk.wire.hear({"kind": "tape"})
    desk.update()
    ((content, _),) = desk.wire.take("tape")
    assert (content["whole"], len(content["rows"])) == (True, 1)


def test_why_it_is_slow_is_told_when_it_changes_and_not_with_every_update(desk: Desk) -> None:
    desk.parts.play(0.2, ttft_s=0.1)
    desk.wire.hear({"kind": "hello"})
    ((content, _),) = desk.wire.take("why")
    assert "TTFT p95 is 100 ms" in content["lines"][0]
    for _ in range(9):
        desk.parts.play(0.2, ttft_s=0.3)
        desk.update()
    assert desk.wire.take("why") == []
    desk.wire.hear({"kind": "ack", "seq": desk.charts._link.seq})
    desk.parts.play(0.21, ttft_s=0.3)
    desk.update()
    assert len(desk.wire.take("why")) == 1
