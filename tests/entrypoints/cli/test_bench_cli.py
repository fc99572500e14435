"""`llmserve bench | sweep | compare` as scripts use them: output, files, exit status."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from llmserve.bench.results.result import Result
from llmserve.core.events import Event
from llmserve.entrypoints.cli.main import _parser, main
from llmserve.entrypoints.magics.parsers import build_parsers
from llmserve.lab.comparison import Comparison
from llmserve.lab.sweep_result import Sweep
from llmserve.lab.tuning.result import TuneResult
from llmserve.models import bundled_path
from support.foreign import foreign
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


def test_axes_and_sides_stand_anywhere_between_the_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["max_num_seqs=1,2", *FAST, "prompt_tokens=4,8", *LOAD[:4], "max_tokens=2,3"]
    assert main(["sweep", "--rounds", "1", *words, "--no-warmup", "--json", "-"]) in MEASURED
    swept = Sweep.from_json(capsys.readouterr().out)
    assert len(swept.points) == 8
    assert list(swept.points[0].values) == ["max_num_seqs", "prompt_tokens", "max_tokens"]
    assert main(["compare", "fifo", *FAST, *LOAD, "priority", "--pairs", "2"]) in MEASURED
    assert "A (policy=fifo)" in capsys.readouterr().out


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


def test_an_llmserve_is_tuned_at_its_address(
    server: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ["--url", f"{server.root}/v1", "--api-key", KEY, "--quiet", "--json", "-"]
    load = ["--rate", "20", "--duration", "0.5", "--max-tokens", "2", "--no-warmup"]
    words = ["ttft_p95=5s", "max_num_seqs=1,2", "--budget", "20s", *load]
    assert main(["tune", *words, *url]) in MEASURED
    found = TuneResult.from_json(capsys.readouterr().out)
    assert found.present == {"max_num_seqs": 32}
    assert len([each for each in found.points if each.trials]) == 3
    assert main(["tune", "ttft_p95=fast", *url]) == 1
    assert "ttft_p95=300ms" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "sent"), [("--plain", False), ("--quiet", True)])
def test_plain_sends_a_url_no_field_of_our_own(
    word: str, sent: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with foreign() as (url, bodies):
        assert main(["bench", "--url", url, *LOAD, "--repeats", "1", "--quiet", word]) in MEASURED
    assert len(bodies) == 4
    for body in bodies:
        assert {"model", "prompt", "max_tokens", "temperature", "stream"} <= body.keys()
        assert (body.keys() >= {"ignore_eos", "priority", "tenant"}) is sent
        assert bool(body.keys() & {"ignore_eos", "priority", "tenant", "ttft_slo_ms"}) is sent


@pytest.mark.parametrize(
    ("words", "cores", "outside"),
    [(["--own-process"], 2, True), ([], 2, False), ([], 8, True), (["--here"], 8, False)],
)
def test_the_command_line_says_where_the_driver_runs(
    words: list[str], cores: int, outside: bool, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("llmserve.bench.run.cell.usable_cores", lambda: cores)
    load = ["--rate", "200", "--requests", "10", "--max-tokens", "3", "--no-warmup"]
    assert main(["bench", *FAST, *load, *words, "--repeats", "1", "--json", "-"]) in MEASURED
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["n"] == 10
    assert ("from a process of its own" in run["workload"]) is outside


def test_the_key_of_a_url_is_read_from_the_variable_that_is_named(
    server: Serving, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "--url", f"{server.root}/v1", "--quiet", *LOAD, "--repeats", "1"]
    monkeypatch.setenv("LLMSERVE_API_KEY", "wrong")
    monkeypatch.setenv("BENCH_KEY", KEY)
    assert main(words) == 1
    assert main([*words, "--key-env", "BENCH_KEY"]) in MEASURED
    assert KEY not in "".join(capsys.readouterr())


def test_a_knob_that_the_server_lacks_is_not_swept(
    server: Serving, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = server.service.engine
    lacking = msgspec.structs.replace(engine.info, unsupported={"batching": "it has one way only"})
    monkeypatch.setattr(engine, "info", lacking)
    heard: list[Event] = []
    server.bus.attach(heard.append)
    url = ["--url", f"{server.root}/v1", "--api-key", KEY, "--quiet"]
    assert main(["sweep", "batching=static,continuous", *url, *LOAD, "--rounds", "1"]) == 1
    server.bus.detach(heard.append)
    assert not heard
    error = capsys.readouterr().err
    assert "batching cannot be tried here: it has one way only" in error


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
        ("bench --engine simulator --knob fifo", "--knob takes NAME=VALUE"),
        ("bench --engine simulator --replay /no/such/file.csv", "no/such/file"),
        ("bench --engine simulator --slo speed:1", "SLO"),
        ("bench --engine simulator --plain", "--plain is of a --url"),
        ("bench --url http://127.0.0.1:9/v1 --own-process", "not of a --url"),
        ("bench --url http://127.0.0.1:9/v1 --tokenizer /etc", "has no tokenizer.json"),
        ("bench --engine simulator --tokenizer /etc", "--tokenizer is of a --url"),
        ("bench --url http://127.0.0.1:9/v1 --key-env NO_SUCH", "NAME of an environment variable"),
        ("bench --url http://127.0.0.1:9/v1 --key-env PATH --api-key k", "not both"),
        ("sweep rate=1,2 --engine simulator --rate 3", "rate is an axis"),
        ("sweep concurrency=1 --engine simulator concurrency=2", "concurrency is given twice"),
        ("bench --engine simulator --knob max_num_seq=1", "did you mean max_num_seqs"),
        ("bench --engine simulator --json - --markdown -", "not both"),
        ("bench --engine simulator --rate 0", "rate must be above 0"),
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


def test_with_the_models_tokenizer_a_urls_prompts_are_exact() -> None:
    load = ["--concurrency", "1", "--requests", "3", "--prompt-tokens", "50", "--no-warmup"]
    with foreign() as (url, bodies):
        words = ["--tokenizer", str(bundled_path()), "--quiet", "--repeats", "1"]
        assert main(["bench", "--url", url, *load, *words]) in MEASURED
    assert [len(body["prompt"]) for body in bodies] == [50] * 3
    assert all(isinstance(token, int) for body in bodies for token in body["prompt"])


@pytest.mark.parametrize("name", ["bench", "sweep", "compare"])
def test_the_magic_takes_the_options_of_the_command_line(name: str) -> None:
    """All but those of a server to start, for the magic has one, and a key in a saved cell."""
    _, commands = _parser()
    told = described(commands[name])
    of_its_own = {"--engine", "--knob", "--option", "--api-key", "-h"}
    assert {words: told[words] for words in told.keys() - of_its_own} == described(
        build_parsers()[name]
    )
    assert of_its_own <= told.keys()


def described(parser: ArgumentParser) -> dict[str, tuple[object, ...]]:
    """Of each option: what it is written to, and how it is read. Help texts of --url and --model
    say where the server is, and may differ."""
    assert not parser.allow_abbrev, "a word of the one would be another's, or an error"
    return {
        (action.option_strings or [action.dest])[0]: (
            action.option_strings, action.dest, type(action), action.nargs, action.const,
            action.default, action.type, action.choices, action.metavar,
            None if action.dest in ("url", "model") else action.help,
        )
        for action in parser._actions
    }  # fmt: skip


def test_figures_that_cannot_be_written_are_told_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", *FAST, *LOAD, "--repeats", "1", "--json"]
    assert main([*words, "/dev/full"]) == 1
    out, error = capsys.readouterr()
    assert "4 of 4 requests served" in out
    assert "No space left" in error
    assert main([*words, str(tmp_path / "nowhere" / "r.json")]) == 1
    out, error = capsys.readouterr()
    assert not out, "it is told before anything is measured"
    assert "nowhere" in error


@pytest.mark.parametrize("kind", ["sweep concurrency=1,2 --rounds 1", "compare . . --pairs 2"])
def test_a_sweep_and_a_comparison_that_served_nothing_are_failures_too(
    kind: str, server: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ["--url", f"{server.root}/v1", "--api-key", KEY, "--quiet", "--model", "nobody"]
    load = LOAD[2:] if "concurrency" in kind else LOAD
    assert main([*kind.split(), *url, *load]) == 1
    assert "no request was served" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["sweep requests=2,4 --rounds 1", "compare --pairs 2"])
def test_a_cache_that_is_not_seen_is_told_in_a_sweep_and_a_comparison(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with foreign() as (url, _):
        urls = ["--url", url] * (2 if "compare" in kind else 1)
        load = [word for word in LOAD if word not in ("--requests", "4")]
        assert main([*kind.split(), *urls, *load, "--quiet"]) in MEASURED
    assert "cache: not seen" in capsys.readouterr().out
