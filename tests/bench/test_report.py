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
    assert "8 of 10 requests in 2 s: 4.00 requests/s, 25.0 generated and 50.0 prompt" in text
    assert "not served: 2 queue_full" in text
    assert "TTFT         8     1.5 ms       1 ms     1.5 ms       2 ms      1.5 s" in text
    assert "TPOT         0          –" in text, "no figure is a dash, never a zero"


def test_prompts_of_another_length_than_asked_for_are_told_with_the_server_s_own_count() -> None:
    def told(counted: int) -> list[str]:
        counts = {"asked_prompt_tokens": 8 * 128, "counted_prompt_tokens": 8 * counted}
        return str(msgspec.structs.replace(REPORT, **counts)).splitlines()

    assert told(696)[1] == "counted by the server: 696 tokens in and 6 out a request"
    warning = next(line for line in told(696) if "OTHER PROMPTS" in line)
    assert "counted 696 tokens in a request where 128 were asked for" in warning
    assert "--tokenizer" in warning
    assert any("OTHER PROMPTS" in line for line in told(112))
    for near in (116, 128, 140):
        assert told(near)[1].startswith(f"counted by the server: {near} tokens in")
        assert not any("OTHER PROMPTS" in line for line in told(near))
    assert "counted" not in str(REPORT), "a server that tells no count is not made to"


def test_the_notebook_sees_the_same_and_nothing_is_taken_for_markup() -> None:
    page = REPORT._repr_html_()
    assert "<th>TTFT</th><td>8</td><td>1.5 ms</td>" in page
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
