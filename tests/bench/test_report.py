"""A report in a terminal, in a notebook, as a frame and as JSON."""

from __future__ import annotations

import msgspec

from llmserve.bench.results.report import Report
from llmserve.observe.window import Summary

SOME = Summary(n=8, mean=0.0015, p50=0.001, p90=0.0015, p95=0.002, p99=1.5)
REPORT = Report(
    workload="closed loop <8>",
    sent=10,
    n=8,
    errors={"queue_full": 2},
    unfinished=0,
    duration_s=2.0,
    ttft=SOME,
    itl=SOME,
    tpot=Summary(),
    e2e=SOME,
    queue=SOME,
    prompt_tokens=100,
    generated_tokens=50,
    batch_fill=0.25,
    seq_fill=0.5,
)


def test_the_table_tells_what_was_served_what_was_not_and_how_fast() -> None:
    text = str(REPORT)
    assert "8 of 10 requests in 2.00 s: 4.00 requests/s, 25.0 generated and 50.0 prompt" in text
    assert "not served: 2 queue_full" in text
    assert "TTFT         8       1.50       1.00       1.50       2.00   1,500.00" in text
    assert "TPOT         0          –" in text, "no figure is a dash, never a zero"


def test_the_notebook_sees_the_same_and_nothing_is_taken_for_markup() -> None:
    page = REPORT._repr_html_()
    assert "<th>TTFT</th><td>8</td><td>1.50</td>" in page
    assert "closed loop &lt;8&gt;" in page


def test_the_frame_is_in_seconds_with_the_rest_beside_it() -> None:
    frame = REPORT.to_frame()
    assert frame.loc["ttft", "p99"] == 1.5
    assert frame.loc["tpot", "n"] == 0
    assert frame.attrs["errors"] == {"queue_full": 2}


def test_json_comes_back_equal() -> None:
    assert Report.from_json(REPORT.to_json()) == REPORT


def test_an_empty_run_divides_by_nothing() -> None:
    empty = msgspec.structs.replace(REPORT, sent=0, n=0, duration_s=0.0)
    assert (empty.requests_per_s, empty.generated_tokens_per_s) == (0, 0)
    assert "0 of 0" in str(empty)
