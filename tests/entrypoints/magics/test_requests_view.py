"""`%llmserve requests`: numbers in the frame, words on the page."""

from __future__ import annotations

import datetime

import pandas as pd
import pytest

from llmserve.entrypoints.magics.requests_view import RequestsView
from llmserve.observe.requests import RequestRow, requests_frame

NOW = 55_600.0
ROWS = [
    RequestRow(
        id="cell-7f3a9e01-000002", tenant="gold", priority=1, state="waiting", arrival=55_599.6
    ),
    RequestRow(
        id="cell-7f3a9e01-000001", tenant="default", priority=0, state="done",
        arrival=55_542.631188, prompt_tokens=1200, max_tokens=9, completion_tokens=9,
        queue_s=33.701, ttft_s=121.152, e2e_s=0.0453, finish_reason="length", preemptions=2,
    ),
]  # fmt: skip


@pytest.fixture
def view() -> RequestsView:
    return RequestsView.of(requests_frame(ROWS), NOW)


def test_times_are_relative_sorted_and_have_units(view: RequestsView) -> None:
    head, first, second = (line.split("  ") for line in repr(view).splitlines())
    assert [cell.strip() for cell in head if cell] == [
        "request", "came", "tenant", "class", "state", "prompt (tokens)", "reply (tokens)",
        "waited", "TTFT", "E2E", "preempted",
    ]  # fmt: skip
    assert [cell.strip() for cell in first if cell] == [
        "cell-7f3a9e01-000001", "57.4 s ago", "default", "0", "done: length", "1,200", "9",
        "33.7 s", "2.02 min", "45.3 ms", "2",
    ]  # fmt: skip
    assert [cell.strip() for cell in second if cell] == [
        "cell-7f3a9e01-000002", "400 ms ago", "gold", "1", "waiting", "–", "0", "–", "–", "–", "0",
    ]  # fmt: skip


def test_with_the_time_of_day_it_says_when_each_came(view: RequestsView) -> None:
    noon = datetime.datetime(2026, 11, 29, 12, 0, 0)
    assert "11:59:02" in repr(RequestsView.of(view, NOW, noon))


def test_the_frame_keeps_its_seconds_and_what_is_cut_from_it_is_plain(view: RequestsView) -> None:
    assert view.loc["cell-7f3a9e01-000001", "ttft_s"] == 121.152
    assert type(view[view["state"] == "done"]) is pd.DataFrame
    assert view["arrival"].is_monotonic_increasing


def test_a_cell_is_one_line_and_no_markup_comes_from_a_request(view: RequestsView) -> None:
    rows = [RequestRow(id="<b>", tenant="t", priority=0, state="waiting", arrival=1.0)]
    page = RequestsView.of(requests_frame(rows), NOW)._repr_html_()
    assert "&lt;b&gt;" in page
    assert page.count("white-space:nowrap") == page.count("<td ") + page.count("<th ")
    assert "tenant" not in page, "one tenant tells nothing"


def test_without_requests_it_is_its_titles() -> None:
    assert "request" in repr(RequestsView.of(requests_frame([]), NOW))
    assert "<tbody></tbody>" in RequestsView.of(requests_frame([]), NOW)._repr_html_()
