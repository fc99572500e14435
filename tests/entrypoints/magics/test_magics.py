"""The magics in a shell of this process, on the simulator."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from llmserve.bench.results.result import Result
from llmserve.entrypoints.session.session import Session
from support.serving import KEY, serving
from support.shells import Shell


def test_start_exposes_the_session_and_shows_how_to_reach_it_but_not_the_key(ip: Shell) -> None:
    ran = ip.ok("%llmserve start --engine simulator")
    session = ip.ip.user_ns["session"]
    assert isinstance(session, Session)
    assert session.url in ran.text
    assert "session.api_key" in ran.text
    assert "131,072 tokens" in ran.text
    assert "text/html" in ran.shown[-1]
    assert all(session.api_key not in str(bundle) for bundle in ran.shown)


def test_no_subcommand_shows_the_key(served: Shell) -> None:
    key = served.ip.user_ns["session"].api_key
    for line in ("status", "url", "set", "requests", "help"):
        ran = served.ok(f"%llmserve {line}")
        assert key not in str(ran.shown) + repr(ran.result)


def test_start_says_at_once_that_it_starts(ip: Shell) -> None:
    assert "Starting the simulator" in ip.ok("%llmserve start --engine simulator").shown[0][
        "text/plain"
    ]


def test_starting_again_with_the_same_words_keeps_the_server(served: Shell) -> None:
    before = served.ip.user_ns["session"]
    ran = served.ok("%llmserve start --engine simulator prefill_ms=1 decode_ms=1")
    assert "running already" in ran.text
    assert "running already" in served.ok("%llmserve start").text
    assert served.ip.user_ns["session"] is before
    assert not before.closed


def test_starting_with_other_options_needs_force(served: Shell) -> None:
    before = served.ip.user_ns["session"]
    line = served.run("%llmserve start --engine simulator max_num_seqs=4").red_line
    assert "--force" in line
    assert not before.closed
    ran = served.ok("%llmserve start --force --engine simulator max_num_seqs=4")
    assert f"port {before.port}" in ran.text  # what was freed
    assert before.closed
    assert served.ip.user_ns["session"].knobs.max_num_seqs == 4


def test_stop_says_what_was_freed_and_stopping_twice_is_harmless(served: Shell) -> None:
    session = served.ip.user_ns["session"]
    ran = served.ok("%llmserve stop")
    assert ran.text == str(session.close())
    assert str(session.port) in ran.text
    assert session.closed
    assert "Nothing is running" in served.ok("%llmserve stop").text
    served.ok("%llmserve start --engine simulator")


def test_a_server_closed_in_code_counts_as_stopped(served: Shell) -> None:
    served.ok("session.close()")
    assert "Nothing is running" in served.ok("%llmserve status").text
    served.ok("%llmserve start --engine simulator")


def test_a_session_made_in_code_obeys_the_magics(ip: Shell) -> None:
    ip.ok("import llmserve; session = llmserve.serve(engine='simulator')")
    ip.ok("%llmserve set max_num_seqs=3")
    assert ip.ip.user_ns["session"].knobs.max_num_seqs == 3
    assert "Freed" in ip.ok("%llmserve stop").text


def test_a_variable_of_the_users_named_session_is_left_alone(ip: Shell) -> None:
    ip.ok("session = 'a requests.Session, say'")
    ran = ip.ok("%llmserve start --engine simulator")
    assert ip.ip.user_ns["session"] == "a requests.Session, say"
    assert isinstance(ip.ip.user_ns["llmserve_session"], Session)
    assert "llmserve_session.api_key" in ran.text
    assert "`llmserve_session`" in ran.text


def test_a_cell_is_a_prompt_and_its_reply_streams_as_markdown(served: Shell) -> None:
    ran = served.ok("%%llmserve --max-tokens 40 --seed 1\nTell me\na story.")
    pages = [bundle["text/markdown"] for bundle in ran.shown if "text/markdown" in bundle]
    assert len(pages) >= 3  # empty, on the way, whole
    assert all(later.startswith(earlier) for earlier, later in pairwise(pages))
    assert len(pages[-1].split()) == 40
    assert ran.shown[-1]["text/plain"].startswith("40 tokens · TTFT ")
    assert "tokens/s" in ran.shown[-1]["text/plain"]


def test_ask_sends_the_prompt_exactly_as_typed(served: Shell) -> None:
    session = served.ip.user_ns["session"]
    prompt = "Who's  there --really? \"Me\""
    ran = served.ok(f"%llmserve ask --max-tokens=7 --seed 3 {prompt}")
    page = [bundle["text/markdown"] for bundle in ran.shown if "text/markdown" in bundle][-1]
    assert page == session.generate(prompt, max_tokens=7, seed=3)


def test_a_comment_behind_a_line_is_no_part_of_it(ip: Shell) -> None:
    ip.ok("%llmserve start --engine simulator decode_ms=1  # a toy; it's quick")
    assert "max_num_seqs: 32 → 7" in ip.ok("%llmserve set max_num_seqs=7  # it's obeyed").text
    ip.ok("%%llmserve --max-tokens 1  # the cell is the prompt\nHi")
    assert len(ip.ok("%llmserve steps --last 1 # of many").result) == 1


def test_a_sign_that_only_looks_like_a_comment_stays(ip: Shell) -> None:
    ip.ok("%llmserve start 'a #1' --engine simulator decode_ms=1")
    assert ip.ip.user_ns["session"].info.model_id == "a #1"
    ip.ok("%llmserve ask --max-tokens 1 Say # twice")
    session = ip.ip.user_ns["session"]
    asked = session.service.engine.tokenizer.chat([{"role": "user", "content": "Say # twice"}])
    assert session.requests().prompt_tokens.tolist() == [len(asked)]


def test_options_may_stand_between_the_words(ip: Shell) -> None:
    ip.ok("%llmserve start my/model --engine simulator max_num_seqs=4")
    session = ip.ip.user_ns["session"]
    assert (session.info.model_id, session.knobs.max_num_seqs) == ("my/model", 4)
    line = ip.run("%llmserve set max_num_seqs=3 --evict max_active=2").red_line
    assert "cannot preempt on demand" in line


def test_variables_are_filled_into_the_line(served: Shell) -> None:
    served.ok("cap = 5\npolicy = 'priority'")
    served.ok("%llmserve set max_num_seqs=$cap policy={policy}")
    knobs = served.ip.user_ns["session"].knobs
    assert (knobs.max_num_seqs, knobs.policy) == (5, "priority")


def test_set_tells_what_changed_and_without_words_shows_all_knobs(served: Shell) -> None:
    assert "max_num_seqs: 32 → 8" in served.ok("%llmserve set max_num_seqs = 8").text
    text = served.ok("%llmserve set").text
    assert "queue_timeout_s" in text
    assert "1 to 1,024 requests" in text


def test_requests_and_steps_are_frames_of_what_ran(served: Shell) -> None:
    served.ok("%llmserve ask --max-tokens 3 one")
    served.ok("%llmserve ask --max-tokens 3 two")
    assert len(served.ok("%llmserve requests").result) == 2
    assert len(served.ok("%llmserve requests --last 1").result) == 1
    shown = served.ok("%llmserve requests").result
    assert isinstance(shown["arrival"].iloc[0], float)
    assert re.search(r"^cell-\S+ +\S+ (ms|s) ago +done: length +", repr(shown), re.MULTILINE)
    clock = served.ok("%llmserve requests --clock").result
    assert re.search(r"^cell-\S+ +\d\d:\d\d:\d\d +done: length", repr(clock), re.MULTILINE)
    assert len(served.ok("frame = %llmserve steps --all").result or ()) == 0
    assert len(served.ip.user_ns["frame"]) == len(served.ip.user_ns["session"].tape())


def test_tenants_is_a_frame_and_a_file_puts_other_terms_in_force(
    served: Shell, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text('{"gold": {"key": "sk-gold-0123456789", "weight": 3}}')
    assert list(served.ok("%llmserve tenants").result.index) == []
    table = served.ok(f"%llmserve tenants {keys}").result
    assert table.weight.to_dict() == {"gold": 3}


def test_status_tells_address_and_figures(served: Shell) -> None:
    served.ok("%llmserve ask --max-tokens 3 one")
    text = served.ok("%llmserve status").text
    assert served.ip.user_ns["session"].url in text
    assert "TTFT" in text


def test_bench_returns_its_report(served: Shell) -> None:
    ran = served.ok("%llmserve bench --concurrency 2 --requests 4 --max-tokens 3")
    assert ran.result is not None
    assert "TTFT" in str(ran.result)


def test_tune_returns_what_it_found_and_knows_limits_from_knobs(served: Shell) -> None:
    words = "ttft_p95=5s max_num_seqs=1,2 --budget 20s --maximize requests --rate 20"
    found = served.ok(f"%llmserve tune {words} --duration 0.5 --max-tokens 2 --quiet").result
    assert (found.figure, found.slo) == ("requests_per_s", "ttft_p95 5 s")
    assert {each.values["max_num_seqs"] for each in found.points} >= {1, 2}


def test_sweep_and_compare_return_what_they_found(served: Shell) -> None:
    load = "--concurrency 2 --requests 4 --max-tokens 3"
    swept = served.ok(f"%llmserve sweep max_num_seqs=1,2 --rounds 1 {load}").result
    assert [point.values for point in swept.points] == [{"max_num_seqs": 1}, {"max_num_seqs": 2}]
    compared = served.ok(f"%llmserve compare fifo max_num_seqs=1 --pairs 2 {load}").result
    assert (compared.a, compared.b, compared.pairs) == ("policy=fifo", "max_num_seqs=1", 2)


def test_a_server_elsewhere_is_measured_with_none_running_here(
    ip: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCH_KEY", KEY)
    load = "--concurrency 2 --requests 4 --prompt-tokens 8 --max-tokens 3 --no-warmup --quiet"
    with serving("simulator", prefill_ms=1.0, decode_ms=1.0) as server:
        there = f"--url {server.root}/v1 --key-env BENCH_KEY"
        path = tmp_path / "found.json"
        ran = ip.ok(f"%llmserve bench {there} --repeats 1 {load} --json {path}")
        assert (ran.result.engine, ran.result.model, ran.result.n) == ("http", server.model, 4)
        assert Result.from_json(path.read_text()) == ran.result
        swept = ip.ok(f"%llmserve sweep max_num_seqs=1,2 {there} --rounds 1 {load}").result
        assert [len(point.runs) for point in swept.points] == [1, 1]
        compared = ip.ok(f"%llmserve compare fifo priority {there} --pairs 2 {load}").result
        assert compared.b == "policy=priority"
        twice = f"{there} --url {server.root}/v1"
        assert ip.ok(f"%llmserve compare {twice} --pairs 2 {load} --markdown -").text.count("|") > 9
    assert "Nothing is running" in ip.ok("%llmserve status").text


def test_a_key_typed_by_mistake_or_read_for_a_url_is_never_shown(
    ip: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_KEY", "sk-very-secret")
    at = "%llmserve bench --rate 1 --url"
    with serving("simulator") as server:
        for line in (
            f"{at} {server.root}/v1 --key-env sk-very-secret",
            f"{at} {server.root}/v1 --key-env BENCH_KEY",
            f"{at} {server.root}/v1 --api-key sk-very-secret",
            f"{at} {server.root}/v1 --api-key=sk-very-secret",
        ):
            ran = ip.run(line)
            assert "sk-very-secret" not in ran.red_line + str(ran.shown), line
    assert "NAME of an environment variable" in ip.run(f"{at} http://x/v1 --key-env none").red_line


def test_help_names_every_subcommand_and_every_option(ip: Shell) -> None:
    overview = ip.ok("%llmserve").text
    names = "start status set ask dashboard requests bench sweep compare stop"
    for name in names.split():
        assert f"%llmserve {name}" in overview
        assert f"%llmserve {name}" in ip.ok(f"%llmserve help {name}").text
        assert ip.ok(f"%llmserve {name} --help").text == ip.ok(f"%llmserve help {name}").text
    assert "--max-tokens" in ip.ok("%llmserve help ask").text


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("%llmserve stat", "status"),
        ("%llmserve help strat", "start"),
        ("%llmserve start --engine simulater", "simulator"),
        ("%llmserve start --prot 80", "--port"),
        ("%llmserve start --engine simulator max_seqs=3", "max_num_seqs"),
        ("%llmserve start max_seqs=3", "did you mean max_num_seqs"),
        ("%llmserve start nothing=3", "its options: model"),
        ("%llmserve start ./no/such/folder", "no model folder"),
        ("%llmserve start --port 70000", ": port must be within 0 and 65,535"),
        ("%llmserve start --engine simulator max_num_seqs=0", "within 1 and"),
        ("%llmserve start --engine simulator decode_ms=many", "decode_ms takes a number"),
        ("%llmserve start --engine simulator gc_threshold=0", "gc_threshold must be within 1"),
        ("%llmserve start --engine simulator one two", "one model"),
        ("%llmserve start --engine simulator cors_origins=https://a.example/x", "write 'https://a"),
        ("%llmserve start --port many", "invalid int"),
        ("%llmserve set max_num_seqs=3", "%llmserve start"),
        ("%llmserve compare fifo --rate 1", "two settings, or --url twice"),
        ("%llmserve compare fifo --url http://127.0.0.1:9/v1", "two settings, or --url twice"),
        ("%llmserve bench --url http://127.0.0.1:9/v1 --rate 1", "http://127.0.0.1:9/v1"),
        ("%llmserve bench --url http://127.0.0.1:9/v1 --here", "not of a --url"),
        ("%llmserve bench --model m --rate 1", "--model is of a --url"),
        ("%llmserve bench --plain --rate 1", "--plain is of a --url"),
        ("%llmserve sweep rate=1,2 --rate 1", "rate is an axis"),
        ("%llmserve bench --rate 1", "%llmserve start"),
        ("%llmserve sweep --rate 1", "needs an axis"),
        ("%llmserve bench --prompt-tokens many", "prompt_tokens takes a whole number, not 'many'"),
        ("%llmserve bench --speed 2 --rate 1", "--speed is of a --replay"),
        ("%llmserve dashboard", "%llmserve start"),
        ("%llmserve ask hello", "%llmserve start"),
        ("%llmserve ask --max-token 3 hello", "--max-tokens"),
        ("%llmserve ask --max-tokens", "needs a value"),
        ("%llmserve ask", "prompt is empty"),
        ("%%llmserve tell me\na story", "the cell is the prompt"),
        ("%%llmserve --raw --system kind\na story", "--system"),
        ("%llmserve start 'unclosed", "closing quotation"),
    ],
)
def test_a_mistake_is_one_red_line_that_helps(ip: Shell, line: str, word: str) -> None:
    assert word in ip.run(line).red_line
    assert not any(isinstance(each, Session) for each in ip.ip.user_ns.values())


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("%llmserve set max_seqs=8", "did you mean max_num_seqs"),
        ("%llmserve set max_num_seqs=-1", "within"),
        (f"%llmserve set max_num_seqs={'1' * 5000}", "within 1 and 1,024 requests"),
        ("%llmserve set queue_timeout_s=1e400", "within 0.01 and 86,400 s, not inf"),
        ("%llmserve set max_num_seqs={[]:1}", "takes a whole number"),
        ("%llmserve set policy=fastest", "fifo"),
        ("%llmserve set 8", "name=value"),
        ("%llmserve ask --temperature nan hello", "temperature"),
        ("%llmserve ask --max-tokens 0 hello", "max_tokens"),
        ("%llmserve ask --max-tokens 99999 hello", "context"),
        ("%llmserve tenants /nowhere.json", "No such file"),
    ],
)
def test_a_mistake_while_serving_changes_nothing(served: Shell, line: str, word: str) -> None:
    before = served.ip.user_ns["session"].knobs
    assert word in served.run(line).red_line
    assert served.ip.user_ns["session"].knobs == before
    served.ok("%llmserve ask --max-tokens 2 hello")


def test_a_taken_port_is_told_in_the_cell(served: Shell) -> None:
    port = served.ip.user_ns["session"].port
    served.ok("first = session; del session")
    served.ok("%unload_ext llmserve\n%load_ext llmserve")
    assert str(port) in served.run(f"%llmserve start --engine simulator --port {port}").red_line
    served.ok("first.close()")


def test_an_exception_in_a_cell_leaves_serving_as_it_was(served: Shell) -> None:
    assert isinstance(served.run("1 / 0").error, ZeroDivisionError)
    served.ok("%llmserve ask --max-tokens 2 hello")


def test_unloading_takes_the_magic_away_and_leaves_the_server_to_its_variable(
    served: Shell,
) -> None:
    session = served.ip.user_ns["session"]
    matchers = len(served.ip.Completer.custom_matchers)
    served.ok("%unload_ext llmserve")
    assert "llmserve" not in served.ip.magics_manager.magics["line"]
    assert len(served.ip.Completer.custom_matchers) == matchers - 1
    assert not session.closed
    served.ok("%load_ext llmserve")
    assert "running already" in served.ok("%llmserve start").text
    served.ok("%reload_ext llmserve")
    assert len(served.ip.Completer.custom_matchers) == matchers


def test_tags_in_a_reply_are_shown_and_not_obeyed() -> None:
    from llmserve.entrypoints.magics.prompt_cell import markdown

    told = markdown("<img src=x> and `a<b` and\n```\n<b>\n```\nso 1<2")
    assert told["text/markdown"] == (
        "&lt;img src=x> and `a<b` and\n```\n<b>\n```\nso 1&lt;2"
    )
    assert told["text/plain"].startswith("<img")


def test_why_tells_what_the_time_went_into_and_which_knob_binds(served: Shell) -> None:
    assert "nothing to explain" in str(served.ok("%llmserve why").result)
    served.ok("%%llmserve --max-tokens 4\nhello")
    why = served.ok("%llmserve why --window 60").result
    assert why.window_s == 60
    assert "TTFT p95 is" in str(why)


def test_sleep_wake_and_restart_say_what_was_done_and_status_says_what_to_do(
    served: Shell,
) -> None:
    assert "stopped instead" in served.ok("%llmserve sleep 2 --drain 1").text
    status = served.ok("%llmserve status").text
    assert "asleep; requests wait: %llmserve wake" in status
    assert "The engine is awake again" in served.ok("%llmserve wake").text
    assert "The engine was restarted." in served.ok("%llmserve restart").text
    assert "asleep" not in served.ok("%llmserve status").text
    assert served.ok("%llmserve ask --max-tokens 2 hello").shown


def test_pause_and_resume_are_for_engines_that_can(
    served: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in ("pause", "resume"):
        assert "cannot pause; vllm can" in served.run(f"%llmserve {word}").red_line
    turned: list[str] = []
    session = served.ip.user_ns["session"]
    monkeypatch.setattr(session, "pause", lambda: turned.append("pause"))
    monkeypatch.setattr(session, "resume", lambda: turned.append("resume"))
    assert "%llmserve resume" in served.ok("%llmserve pause").text
    assert "goes on" in served.ok("%llmserve resume").text
    assert turned == ["pause", "resume"]


def test_evict_is_for_engines_that_can(served: Shell) -> None:
    line = served.run("%llmserve set max_num_seqs=2 --evict").red_line
    assert "leave evict out" in line
    assert served.ip.user_ns["session"].knobs.max_num_seqs != 2
