"""Half an hour of traffic, nobody looking and somebody looking: nothing grows without an end."""

from __future__ import annotations

from dashboard.parts import Desk, Wire
from llmserve.dashboard.batch_tape import REQUESTS, STEPS
from llmserve.dashboard.codec import decode
from llmserve.dashboard.panels import COLUMNS
from llmserve.dashboard.series import CAPACITY


def serve(desk: Desk, seconds: float) -> None:
    """Five requests a second, one update each."""
    for _ in range(int(5 * seconds)):
        desk.parts.play(0.2, ttft_s=0.05, gap_s=0.005, tokens=3)
        desk.update()


def sizes(desk: Desk) -> dict[str, int]:
    tape, flow = desk.recorder.tape, desk.recorder._flow
    spending = desk.parts.telemetry.why._clock
    return {
        "steps": len(tape._steps), "rows": len(tape._rows), "open": len(tape._open),
        "running": len(tape._running), "waiting": len(flow._waiting), "born": len(flow._born),
        "first tokens": len(flow._ttft), "unfinished": len(spending.live),
        "series": len(desk.recorder._series.since(0)[0]),
    }  # fmt: skip


def test_half_an_hour_grows_nothing_that_has_an_end_and_nothing_beyond_its_bound() -> None:
    desk = Desk.lay()
    for _ in range(9000):  # five requests a second; few samples, or it would take as long
        desk.parts.play(0.2, ttft_s=0.05, gap_s=0.005, tokens=3)
    for _ in range(CAPACITY + 10):
        desk.recorder._series.append(0.0, [0.0] * len(COLUMNS))
    tape, flow = desk.recorder.tape, desk.recorder._flow
    assert sizes(desk) == {
        "steps": STEPS, "rows": REQUESTS, "open": 0, "running": 0, "waiting": 0, "born": 0,
        "first tokens": 0, "unfinished": 0, "series": CAPACITY,
    }  # fmt: skip
    assert all(len(kept) <= (kept.maxlen or 0) for kept in (tape._closed, tape._steps))
    assert all(len(kept) <= kept.capacity for kept in (flow._ended, flow._refused, flow._steps))


def test_a_closed_lid_is_sent_nothing_and_misses_nothing_that_is_kept() -> None:
    desk = Desk.lay()
    desk.wire.hear({"kind": "hello"})
    serve(desk, 10)
    desk.wire.take_all()
    serve(desk, 300)  # no acknowledgement
    assert desk.wire.take_all() == []
    desk.wire.hear({"kind": "hello"})
    messages = {content["kind"]: (content, buffers) for content, buffers in desk.wire.take_all()}
    assert len(decode(messages["snapshot"][1][0]).times) == 5 * 310 + 1
    content, (steps, _) = messages["tape"]
    assert content["whole"]
    assert (len(steps) // 32, len(content["rows"])) == (3 * 5 * 310, 5 * 310)


def test_a_reload_leaves_nothing_of_the_page_before_it() -> None:
    desk = Desk.lay()
    for _ in range(50):
        desk.wire.hear({"kind": "hello"})
        desk.wire.hear({"kind": "bye"})
    desk.wire.take_all()
    serve(desk, 1)
    assert desk.wire.take_all() == []
    assert desk.charts._pictures == {}


def test_two_dashboards_lose_nothing_of_each_other() -> None:
    from dashboard.parts import ABOUT
    from llmserve.dashboard.charts import Charts
    from llmserve.dashboard.playground import Playground

    desk = Desk.lay()
    parts, idle = desk.parts, Playground(desk.parts.service, desk.parts.runtime)
    other = Charts(desk.recorder, parts.board, desk.controls, parts.clock, ABOUT, idle)
    wires = (desk.wire, Wire(other))
    for wire in wires:
        wire.hear({"kind": "hello"})
    steps = [0, 0]
    for _ in range(20):
        serve(desk, 0.2)
        other.push()
        for i, wire in enumerate(wires):
            for _, (part, _) in wire.take("tape"):
                steps[i] += len(part) // 32
            wire.hear({"kind": "ack", "seq": wire.widget._link.seq})
    assert steps == [60, 60]
