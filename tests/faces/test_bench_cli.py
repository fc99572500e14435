"""`llmserve bench | sweep | compare` as scripts use them: output, files, exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmserve.bench.result import Result
from llmserve.cli import main
from llmserve.lab.points import Sweep
from llmserve.lab.verdict import Comparison
from support.serving import KEY, Serving, serving

FAST = ["--engine", "simulator", "--option", "prefill_ms=1", "--option", "decode_ms=1", "--quiet"]
LOAD = [
    "--concurrency", "2", "--requests", "4", "--prompt-tokens", "8", "--max-tokens", "3",
    "--no-warmup",
]
MEASURED = (0, 3)
"""A busy machine may be late, and the figures then come with that warning."""


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving("simulator", prefill_ms=1.0, decode_ms=1.0) as served:
        yield served


def test_bench_prints_its_figures_and_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = tmp_path / "r.json", tmp_path / "r.md"
    files = ["--json", str(path), "--markdown", str(page)]
    assert main(["bench", *FAST, *LOAD, "--repeats", "2", *files]) in MEASURED
    assert "8 of 8 requests served in 2 runs" in capsys.readouterr().out
    assert Result.from_json(path.read_text()).n == 8
    assert "| TTFT |" in page.read_text()


def test_bench_asks_any_url(server: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    url = ["--url", f"{server.root}/v1", "--api-key", KEY, "--quiet"]
    assert main(["bench", *url, *LOAD, "--repeats", "1", "--json", "-"]) in MEASURED
    found = json.loads(capsys.readouterr().out)
    assert (found["engine"], found["model"]) == ("http", server.model)
    assert found["runs"][0]["generated_tokens"] == 12


def test_sweep_and_compare_tell_what_they_found(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["max_num_seqs=1,2", *FAST, *LOAD, "--rounds", "1", "--json", "-"]
    assert main(["sweep", *words]) in MEASURED
    swept = Sweep.from_json(capsys.readouterr().out)
    assert [len(point.runs) for point in swept.points] == [1, 1]
    sides = ["fifo", "max_num_seqs=1,policy=fifo"]
    assert main(["compare", *sides, *FAST, *LOAD, "--pairs", "2", "--json", "-"]) in MEASURED
    compared = Comparison.from_json(capsys.readouterr().out)
    assert (compared.a, compared.b) == ("policy=fifo", "max_num_seqs=1 policy=fifo")


def test_two_servers_are_compared_by_address(
    server: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ["--url", f"{server.root}/v1", "--url", f"{server.root}/v1", "--api-key", KEY, "--quiet"]
    assert main(["compare", *url, *LOAD, "--pairs", "2"]) in MEASURED
    assert "2 pairs on identical arrivals, in the order ABBA" in capsys.readouterr().out


def test_an_llmserve_is_swept_and_compared_at_its_address(
    server: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ["--url", f"{server.root}/v1", "--api-key", KEY, "--quiet", "--json", "-"]
    assert main(["sweep", "max_num_seqs=1,2", *url, *LOAD, "--rounds", "1"]) in MEASURED
    swept = Sweep.from_json(capsys.readouterr().out)
    assert [len(point.runs) for point in swept.points] == [1, 1]
    assert main(["compare", "fifo", "priority", *url, *LOAD, "--pairs", "2"]) in MEASURED
    assert Comparison.from_json(capsys.readouterr().out).b == "policy=priority"


def test_a_warning_has_an_exit_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "max_num_seqs=1,999", *FAST, *LOAD, "--rounds", "1"]
    assert main(words) == 3
    assert "max_num_seqs=999: not tried" in capsys.readouterr().err


def test_nothing_served_is_a_failure(server: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    url = ["--url", f"{server.root}/v1", "--api-key", KEY, "--quiet", "--model", "nobody"]
    assert main(["bench", *url, *LOAD, "--repeats", "1"]) == 1
    assert "no request was served" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("bench --url http://127.0.0.1:9/v1 --quiet", "http://127.0.0.1:9/v1"),
        ("bench --url http://127.0.0.1:9/v1 --knob a=1", "of a server to start"),
        ("bench --engine simulator --rate 1 --concurrency 1", "not both"),
        ("bench --engine simulator --knob fifo", "take NAME=VALUE"),
        ("bench --engine simulator --replay /no/such/file.csv", "no/such/file"),
        ("bench --engine simulator --slo speed:1", "SLO"),
        ("compare fifo", "two settings, or --url twice"),
        ("compare --engine simulator fifo fastest", "policy"),
        ("sweep max_num_seqs --engine simulator", "an axis is"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
