"""The figure of a job under way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmserve.bench.job import State
from llmserve.bench.live import Live
from llmserve.figures import Figure, shown

START = State("run 1 of 3", 0, 3, 0, 30, 4, 0, 0.0, 0)


def test_it_shows_tokens_per_second_at_most_once_a_second_and_makes_no_picture() -> None:
    now, state, drawn = 10.0, START, list[Figure]()
    live = Live(lambda: state, lambda: now, drawn.append)
    for tenth in range(1, 31):
        now, state = 10.0 + tenth / 10, replace(START, tokens=20 * tenth)
        live.watch()
    assert len(drawn) == 3
    rates, running = drawn[-1].plotly["data"]
    assert rates["y"] == pytest.approx([200.0] * 3)
    assert running["y"] == [4.0] * 3
    assert rates["x"] == pytest.approx([1.0, 2.0, 3.0])
    assert drawn[-1].plotly["layout"]["title"]["text"] == "run 1 of 3"
    assert "image/png" not in drawn[-1]._repr_mimebundle_()


def test_it_keeps_the_newest_points_only() -> None:
    now, drawn = 0.0, list[Figure]()
    live = Live(lambda: START, lambda: now, drawn.append)
    for second in range(1, 1001):
        now = float(second)
        live.watch()
    assert drawn[-1].plotly["data"][0]["x"][-1] == 1000.0
    assert len(drawn[-1].plotly["data"][0]["x"]) == 300


def test_outside_a_notebook_nothing_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    shown()(Figure({}, b""))
    assert capsys.readouterr().out == ""
