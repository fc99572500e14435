"""The notebooks' small figures."""

from __future__ import annotations

import json
import xml.etree.ElementTree

import pandas as pd
import plotly.graph_objects as go

from llmserve.plots.figures import Figure, heat, in_unit, lines


def words(figure: Figure) -> list[str]:
    return [e.text for e in xml.etree.ElementTree.fromstring(figure.svg).iter() if e.text]


def test_a_figure_is_a_plotly_one_and_a_light_picture_of_the_same_size() -> None:
    figure = lines("Rows", {"a": ([0, 1, 2.3], [4, 4, 16])}, x="s", y="rows", marks={1: "4 → 16"})
    bundle = figure._repr_mimebundle_()
    assert len(json.dumps(bundle)) < 10_000
    assert bundle["image/svg+xml"] == figure.svg
    picture = xml.etree.ElementTree.fromstring(figure.svg).attrib
    layout = bundle["application/vnd.plotly.v1+json"]["layout"]
    assert (int(picture["width"]), int(picture["height"])) == (layout["width"], layout["height"])
    assert words(figure) == [
        "Rows", "0", "5", "10", "15", "20", "0", "0.5", "1", "1.5", "2", "s", "4 → 16", "rows", "a",
    ]  # fmt: skip
    drawn = go.Figure(bundle["application/vnd.plotly.v1+json"])  # which checks every property
    assert list(drawn.data[0].y) == [4, 4, 16]
    assert drawn.layout.annotations[0].text == "4 → 16"


def test_a_long_series_is_thinned_and_keeps_its_peaks() -> None:
    ys = [0.0] * 100_000
    ys[54_321] = 9.0
    figure = lines("Long", {"a": (list(range(100_000)), ys)}, x="s", y="n")
    kept = figure.plotly["data"][0]
    assert len(kept["x"]) <= 500
    assert (54_321, 9.0) in zip(kept["x"], kept["y"], strict=True)


def test_a_heat_map_shows_every_value() -> None:
    frame = pd.DataFrame(
        [[1.0, 20.0], [300.0, 4.0]],
        index=pd.Index([0, 5], name="window"), columns=pd.Index([2, 4], name="batch"),
    )
    figure = heat("Rate", frame)
    drawn = go.Figure(figure.plotly)
    assert [list(row) for row in drawn.data[0].text] == [["1", "20"], ["300", "4"]]
    assert drawn.layout.xaxis.title.text == "batch"


def test_nothing_measured_is_an_empty_figure() -> None:
    assert "Empty" in words(lines("Empty", {"a": ([], [])}, x="s", y="n"))


def test_more_lines_than_inks_are_all_drawn_and_single_points_are_seen() -> None:
    figure = lines("Many", {f"line {n}": ([n], [n]) for n in range(6)}, x="s", y="n")
    assert [trace["name"] for trace in figure.plotly["data"]] == [f"line {n}" for n in range(6)]
    assert figure.svg.count("<circle") == 6
    assert all(trace["mode"] == "lines+markers" for trace in figure.plotly["data"])


def test_an_axis_of_times_is_in_the_unit_of_the_longest() -> None:
    curves = {"a": ([0.1, 0.9], [1, 2]), "b": ([121.2], [3])}
    drawn, unit = in_unit(curves, "x")
    assert unit == "min"
    assert drawn["b"] == ([121.2 / 60], [3])
    short, unit = in_unit({"a": ([1, 2], [0.1, 0.9])}, "y")
    assert (unit, short["a"]) == ("ms", ([1, 2], [100, 900]))
    assert in_unit({}, "x") == ({}, "ms")


def test_no_axis_writes_a_number_with_an_exponent() -> None:
    figure = lines("Large", {"a": ([0, 40_000], [0, 250_000])}, x="tokens", y="tokens/s")
    assert {"40,000", "200,000"} <= set(words(figure))
    drawn = go.Figure(figure.plotly)
    assert drawn.layout.yaxis.exponentformat == drawn.layout.xaxis.exponentformat == "none"
