"""The notebooks' small figures."""

from __future__ import annotations

import base64
import io
import json

import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from llmserve.figures import heat, lines


def test_a_figure_is_a_plotly_one_and_a_light_picture() -> None:
    figure = lines("Rows", {"a": ([0, 1, 2], [4, 4, 16])}, x="s", y="rows", marks={1: "4 → 16"})
    bundle = figure._repr_mimebundle_()
    picture = base64.b64decode(bundle["image/png"])
    assert Image.open(io.BytesIO(picture)).size == (1440, 600)
    assert len(json.dumps(bundle)) < 40_000
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
    assert lines("Empty", {"a": ([], [])}, x="s", y="n").png.startswith(b"\x89PNG")
