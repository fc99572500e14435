"""A whole session on the simulator: real thread, real socket, real time."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import llmserve
from llmserve.core.knobs import KnobError
from llmserve.core.types import ParamError
from llmserve.entrypoints.session.session import Session
from llmserve.observe.stats import LiveStats
from llmserve.observe.trace import read_trace, replay

FAST: dict[str, Any] = {"prefill_ms": 1.0, "decode_ms": 1.0}


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with llmserve.serve(engine="simulator", **FAST) as running:
        yield running


def until(condition: object, seconds: float = 60.0) -> None:
    """Poll a callable; for what another thread does in its own time."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def test_the_same_prompt_and_seed_give_the_same_reply_by_every_road(session: Session) -> None:
    options = {"max_tokens": 6, "seed": 3}
    whole = session.generate("hello", **options)
    assert whole.outcome.usage.completion_tokens == 6
    assert "".join(session.stream("hello", **options)) == whole
    assert asyncio.run(session.agenerate("hello", **options)) == whole

    async def pieces() -> str:
        return "".join([piece async for piece in session.astream("hello", **options)])

    assert asyncio.run(pieces()) == whole
    chat = session.client().chat.completions.create(
        model=session.info.model_id, messages=[{"role": "user", "content": "hello"}],
        max_tokens=6, seed=3,
    )  # fmt: skip
    assert chat.choices[0].message.content == whole


def test_leaving_a_stream_early_stops_the_generation(session: Session) -> None:
    for _ in session.stream("hello", max_tokens=8000):
        break
    gc.collect()
    until(lambda: session.requests().iloc[-1].finish_reason == "abort")
    assert session.requests().iloc[-1].completion_tokens < 8000


def test_a_stream_that_the_collector_closes_on_the_serving_thread_just_ends(
    session: Session,
) -> None:
    pieces: Any = session.stream("hello", max_tokens=5000)
    next(pieces)

    async def collected() -> None:
        pieces.close()

    session.runtime.call(collected())
    until(lambda: session.stats().running == 0)


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ("", {}, "empty"),
        ("hi", {"max_token": 3}, "unknown option 'max_token'"),
        ("hi", {"max_tokens": 10**6}, "maximum context length"),
        ("hi", {"temperature": "hot"}, "temperature"),
        ("hi", {"priority": "hot"}, "priority takes a whole number, not 'hot'"),
        ("hi", {"tenant": "\ud800"}, "a tenant is 1 to 128 printable characters"),
        ({"role": "user", "content": "hi"}, {}, "a list of messages like"),
        (["hi"], {}, "a list of messages like"),
        (7, {}, "a list of messages like"),
        ("hi", {"ttft_slo_ms": "hot"}, "ttft_slo_ms takes a number, not 'hot'"),
        ("hi", {"temperature": float("nan")}, "temperature takes a number, not nan"),
    ],
)
def test_a_wrong_prompt_or_option_is_refused_with_its_name(
    session: Session, prompt: Any, options: dict[str, object], says: str
) -> None:
    with pytest.raises(ParamError, match=says):
        session.generate(prompt, **options)


def test_setting_a_knob_reports_the_step_and_a_wrong_one_changes_nothing(session: Session) -> None:
    applied = session.set(max_num_seqs=4)
    assert applied.changed == {"max_num_seqs": (32, 4)}
    assert session.knobs.max_num_seqs == 4
    with pytest.raises(KnobError, match="did you mean"):
        session.set(max_num_seq=5, queue_max=1)
    with pytest.raises(KnobError, match="max_num_seqs must be within 1 and 1,024 requests"):
        session.set(queue_max=1, max_num_seqs=10**5000)
    assert session.knobs.queue_max == 1000
    session.set(max_num_seqs=32)


def test_tape_and_requests_agree_on_every_token(session: Session) -> None:
    usage = session.generate("count me", max_tokens=7).outcome.usage
    row = session.requests().iloc[-1]
    tape = session.telemetry.steps.tape()
    mine = tape[tape.request_id == row.name]
    # the last token is drawn and never run: it is in no row
    assert mine.tokens.sum() + usage.cached_tokens == usage.prompt_tokens + 7 - 1


def test_a_replayed_trace_gives_the_live_figures(
    session: Session, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("trace") / "run.jsonl"
    with session.trace(path):
        for _ in range(3):
            session.generate("hello", max_tokens=5)
    stats = LiveStats()
    replay(read_trace(path), stats)
    snapshot = stats.snapshot()
    assert snapshot.finished == {"length": 3}
    assert snapshot.generated_tokens_total == 15
    assert snapshot.dropped == 0


def test_the_key_is_in_no_repr_and_a_wrong_one_is_refused(session: Session) -> None:
    assert session.api_key not in repr(session)
    assert session.api_key not in repr(session.info)
    with httpx.Client(base_url=session.url) as client:
        assert client.get("/models").status_code == 401
        good = client.get("/models", headers={"Authorization": f"Bearer {session.api_key}"})
        assert good.status_code == 200


def ours() -> set[threading.Thread]:
    """Of all sessions that are here."""
    return {each for each in threading.enumerate() if each.name.startswith("llmserve")}


def test_a_taken_port_is_an_error_in_the_callers_cell_and_leaves_nothing(session: Session) -> None:
    before = ours()
    with pytest.raises(OSError, match="is taken"):
        llmserve.serve(engine="simulator", port=session.port)
    assert ours() <= before


def test_a_log_that_cannot_be_written_is_an_error_there_and_leaves_nothing(tmp_path: Path) -> None:
    before = ours()
    with pytest.raises(FileNotFoundError):
        llmserve.serve(engine="simulator", log_requests=tmp_path / "nowhere" / "log.jsonl")
    until(lambda: ours() <= before)  # the one that closes ends behind what it closed


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="max_num_seq"):
        llmserve.serve(engine="simulator", max_num_seq=3)


def test_an_unknown_engine_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="torch, simulator"):
        llmserve.serve(engine="warp")


def test_closing_gives_back_thread_port_and_interval_twice_over() -> None:
    before = sys.getswitchinterval()
    session = llmserve.serve(engine="simulator")
    port = session.port
    freed = session.close()
    assert session.close() == freed
    assert f"port {port}" in str(freed)
    assert session.closed
    assert not session.runtime.alive
    assert sys.getswitchinterval() == pytest.approx(before, abs=2e-6)
    held = psutil.Process().net_connections("tcp")
    assert (port, psutil.CONN_LISTEN) not in {(each.laddr.port, each.status) for each in held}
    with pytest.raises(RuntimeError, match="closed"):
        session.generate("hello")
    assert "closed" in repr(session)


def test_two_sessions_live_side_by_side_and_close_alone(session: Session) -> None:
    with llmserve.serve(engine="simulator", **FAST) as second:
        assert second.port != session.port
        assert second.generate("a", max_tokens=2)
    assert session.generate("a", max_tokens=2)


def test_a_session_nobody_holds_closes_itself() -> None:
    before = ours()
    session = llmserve.serve(engine="simulator")
    runtime = session.runtime
    del session
    gc.collect()
    until(lambda: not runtime.alive)
    until(lambda: ours() <= before)


def test_closing_while_requests_run_ends_them_with_a_word() -> None:
    session = llmserve.serve(engine="simulator", **FAST)
    errors: list[BaseException] = []

    def talk() -> None:
        try:
            session.generate("hello", max_tokens=8000)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=talk) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: session.stats().running == 4)
    session.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert [str(error) for error in errors] == ["the server was stopped"] * 4


def test_an_interrupt_while_it_closes_ends_the_wait_and_not_the_closing() -> None:
    session = llmserve.serve(engine="simulator", **FAST)
    go_on = threading.Event()

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        go_on.wait(60)

    session._resources.after_close.append(interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.close()
    go_on.set()
    assert session.close().port == session.port
    assert not session.runtime.alive


def test_a_session_collected_on_its_own_loop_closes() -> None:
    session = llmserve.serve(engine="simulator", **FAST)

    async def collected() -> None:
        session._closer()

    session.runtime.submit(collected()).result(60)
    assert session.close().port == session.port
    assert not session.runtime.alive


def test_the_proxy_address_follows_the_hub(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session.proxy_url == f"/proxy/{session.port}/v1"
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ada/")
    assert session.proxy_url == f"/user/ada/proxy/{session.port}/v1"


def test_a_session_that_is_not_strict_ignores_unknown_fields_by_name() -> None:
    with llmserve.serve(engine="simulator", strict=False, **FAST) as lenient:
        answer = httpx.post(
            f"{lenient.url}/completions", json={"prompt": "a", "max_tokens": 1, "zzz": 1},
            headers={"Authorization": f"Bearer {lenient.api_key}"},
        )  # fmt: skip
    assert answer.status_code == 200
    assert answer.headers["x-llmserve-ignored"] == "zzz"
    with pytest.raises(ValueError, match="strict is true or false, not 'no'"):
        llmserve.serve(engine="simulator", strict="no")  # type: ignore[arg-type]
