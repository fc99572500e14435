"""The figure of a job under way."""

from __future__ import annotations

import re
import xml.etree.ElementTree
from dataclasses import replace

import pytest

from llmserve.bench.run.job import State
from llmserve.bench.run.live import LiveThroughput
from llmserve.plots.live_figure import LiveFigure, shown, sketch

START = State("run 1 of 3", 0, 3, 0, 30, 4, 0, 0.0, 0)


def heights(svg: str) -> list[list[float]]:
    """How high each plot's points are, in pixels from the top."""
    lines = re.findall(r'<polyline points="([^"]*)"[^>]*stroke-width="1.75"', svg)
    return [[float(p.split(",")[1]) for p in line.split()] for line in lines]


def test_it_shows_tokens_per_second_over_requests_at_most_once_a_second() -> None:
    now, state, drawn = 10.0, START, list[LiveFigure]()
    live = LiveThroughput(lambda: state, lambda: now, drawn.append)
    for tenth in range(1, 31):
        now, state = 10.0 + tenth / 10, replace(START, tokens=20 * tenth)
        live.watch()
    assert len(drawn) == 3
    rates, running = heights(drawn[-1].svg)
    assert len(rates) == len(running) == 3
    assert rates == pytest.approx([rates[0]] * 3)
    assert all(">200</text>" in one.svg and ">4</text>" in one.svg for one in drawn)
    assert "run 1 of 3</text>" in drawn[-1].svg
    assert all(f">{at}</text>" in drawn[-1].svg for at in "0123")  # round
    for name in ("generated tokens/s", "requests under way", "seconds"):
        assert f">{name}</text>" in drawn[-1].svg


def test_it_keeps_the_newest_points_only() -> None:
    now, drawn = 0.0, list[LiveFigure]()
    live = LiveThroughput(lambda: START, lambda: now, drawn.append)
    for second in range(1, 1001):
        now = float(second)
        live.watch()
    assert [len(line) for line in heights(drawn[-1].svg)] == [300, 300]
    assert all(f">{at}</text>" in drawn[-1].svg for at in ("750", "800", "950", "1,000"))
    assert "run 1 of 3</text>" not in drawn[-1].svg  # it began before


def test_outside_a_notebook_nothing_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    shown(sketch("nothing", {}, x="seconds"))(sketch("later", {}, x="seconds"))
    assert capsys.readouterr().out == ""


def test_a_sketch_is_whole_xml_whatever_words_come_in_and_the_bundle_names_it() -> None:
    made = sketch(
        "a < b & c", {"ms": {"<one>": ([1, 2], [3, 4]), "two": ([1], [2])}}, x="<x>",
        marks={1.5: "&"}, notes=[(1, 3, "<note>")],
    )  # fmt: skip
    texts = [e.text for e in xml.etree.ElementTree.fromstring(made.svg).iter() if e.text]
    assert {"a < b & c", "<one>", "<x>", "&", "<note>"} <= set(texts)
    bundle = made._repr_mimebundle_()
    assert bundle["image/svg+xml"] == made.svg
    assert bundle["text/plain"] == "<sketch: a < b & c>"
