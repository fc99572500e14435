"""Servers at an address, measured in the words of a Session; each test has real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import llmserve
from llmserve.core.events import KnobsChanged, Submitted
from llmserve.core.knobs import KnobError
from llmserve.lab.remote import Remote, RemoteError
from support.foreign import foreign
from support.scripted import ByteTokenizer
from support.serving import KEY, Serving, serving

LOAD: dict[str, Any] = {
    "concurrency": 2, "requests": 4, "prompt_tokens": 8, "max_tokens": 3, "progress": False,
    "warmup": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving("simulator", prefill_ms=1.0, decode_ms=1.0, max_num_seqs_ceiling=8) as served:
        yield served


@pytest.fixture
def remote(server: Serving) -> Iterator[Remote]:
    with llmserve.connect(f"{server.root}/v1", api_key=KEY) as one:
        yield one


@pytest.fixture
def elsewhere() -> Iterator[str]:
    with foreign() as (url, _):
        yield url


def test_a_bench_of_an_address_counts_prompts_by_the_servers_own_count(remote: Remote) -> None:
    result = remote.bench(repeats=2, **LOAD)
    assert (result.n, result.generated_tokens, result.engine) == (8, 24, "http")
    assert all(run.prompt_tokens >= 4 * 8 for run in result.runs), "words are a token or more"
    assert KEY not in repr(remote)


def test_with_a_tokenizer_prompts_are_exact(server: Serving) -> None:
    url = f"{server.root}/v1"
    with server.tail() as tail, Remote(url, api_key=KEY, tokenizer=ByteTokenizer()) as remote:
        remote.bench(repeats=1, **LOAD)
        assert tail.wait(Submitted).prompt_tokens == 8


def test_an_llmserves_knobs_are_swept_from_afar_and_put_back(
    server: Serving, remote: Remote
) -> None:
    before = server.service.board.current
    turned: list[Any] = []

    def hear(event: object) -> None:
        if isinstance(event, KnobsChanged):
            turned.append(event.changed.get("max_num_seqs"))

    server.bus.attach(hear)
    swept = remote.sweep(max_num_seqs=[1, 4, 99], rounds=1, **LOAD)
    server.bus.detach(hear)
    assert [len(point.runs) for point in swept.points] == [1, 1, 0]
    assert "start one with a higher ceiling" in (swept.points[2].skipped or "")
    assert [after for change in turned if change for _, after in [change]][:2] == [1, 4]
    assert server.service.board.current == before


def test_two_settings_are_compared_from_afar(server: Serving, remote: Remote) -> None:
    before = server.service.board.current
    found = remote.compare("priority", {"max_num_seqs": 1}, pairs=2, **LOAD)
    assert (found.a, found.b, found.order) == ("policy=priority", "max_num_seqs=1", "ABBA")
    assert server.service.board.current == before


def test_two_addresses_are_compared(remote: Remote, elsewhere: str) -> None:
    found = remote.against(elsewhere, pairs=2, **LOAD)
    assert (found.a, found.b, found.pairs) == (remote.url, elsewhere, 2)


def test_of_a_foreign_server_the_load_is_swept_and_its_knobs_are_not(elsewhere: str) -> None:
    with llmserve.connect(elsewhere) as server:
        load = {name: value for name, value in LOAD.items() if name != "concurrency"}
        swept = server.sweep(concurrency=[1, 2], rounds=1, **load)
        assert [len(point.runs) for point in swept.points] == [1, 1]
        for refused in (
            lambda: server.sweep(max_num_seqs=[1, 2], **LOAD),
            lambda: server.compare("fifo", "priority", **LOAD),
        ):
            with pytest.raises(KnobError, match=r"is no llmserve.*sweep the load.*two addresses"):
                refused()
        report = server.bench(repeats=1, **LOAD)
        assert report.generated_tokens == 4, "no usage: by deliveries"
        assert report.prefix_hits is None
        assert "cache: not seen" in str(report)
        assert "cache: not seen" in str(report.runs[0])


def test_a_wrong_knob_or_key_or_address_is_told_before_anything_is_sent(
    server: Serving, remote: Remote
) -> None:
    heard: list[object] = []
    server.bus.attach(heard.append)
    with pytest.raises(KnobError, match="did you mean max_num_seqs"):
        remote.compare({"max_num_seq": 1}, "fifo", **LOAD)
    server.bus.detach(heard.append)
    assert not heard
    with pytest.raises(RemoteError, match=r"give the key, or set LLMSERVE_API_KEY"):
        llmserve.connect(f"{server.root}/v1", api_key="wrong")
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9"):
        llmserve.connect("http://127.0.0.1:9/v1")


def test_closing_gives_its_thread_back(server: Serving) -> None:
    remote = llmserve.connect(f"{server.root}/v1", api_key=KEY)
    remote.close()
    remote.close()
    assert not remote._runtime.alive
