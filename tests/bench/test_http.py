"""The bench over a real socket, against the endpoint over the simulator."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from llmserve.bench.load.workload import Workload
from llmserve.bench.results.report import Report
from llmserve.bench.run.client import Client
from llmserve.bench.run.driver import Bench
from llmserve.bench.run.http_target import HttpTarget
from llmserve.core.clock import MonotonicClock
from llmserve.core.events import Submitted
from support.serving import KEY, Serving, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving("simulator", prefill_ms=1.0, decode_ms=1.0) as served:
        yield served


def bench(
    server: Serving, *, exact: bool = True, model: str | None = None,
    prompts: dict[int, tuple[int, ...]] | None = None, **load: Any,
) -> Report:  # fmt: skip
    async def main() -> Report:
        async with aclosing(Client(f"{server.root}/v1", KEY)) as client:
            tokenizer = server.service.engine.tokenizer if exact else None
            name = model or server.model
            target = HttpTarget(client, name, MonotonicClock(), tokenizer, prompts=prompts)
            return await Bench(target, Workload(**load)).run()

    return asyncio.run(main())


def test_the_client_counts_what_the_server_counts(server: Serving) -> None:
    before = server.telemetry.snapshot()
    with server.tail() as tail:
        report = bench(server, concurrency=3, requests=6, prompt_tokens=40, max_tokens=7)
        assert tail.wait(Submitted).prompt_tokens == 40
    after = server.telemetry.snapshot()
    assert (report.sent, report.n, report.errors) == (6, 6, {})
    assert report.generated_tokens == 42
    assert report.asked_prompt_tokens == report.counted_prompt_tokens == 240
    assert report.warnings() == []
    assert after.generated_tokens_total - before.generated_tokens_total == 42
    assert report.ttft.n == 6
    assert report.ttft.p50 is not None
    assert report.ttft.p50 > 0.001, "not before the prefill step is over"


def test_without_a_tokenizer_the_prompt_is_text_of_about_as_many_words(server: Serving) -> None:
    report = bench(server, exact=False, concurrency=1, requests=2, prompt_tokens=5, max_tokens=3)
    assert (report.n, report.generated_tokens) == (2, 6)
    assert report.asked_prompt_tokens == 2 * 5
    assert report.counted_prompt_tokens == report.prompt_tokens > 3 * report.asked_prompt_tokens
    head, *warnings = (line for line in str(report).splitlines() if "count" in line)
    assert head.startswith(f"counted by the server: {report.prompt_tokens / 2:,.0f} tokens in")
    assert "where 5 were asked for" in warnings[0]


def test_a_refusal_is_told_by_the_servers_own_reason(server: Serving) -> None:
    with server.knobs(max_active=1, queue_mode="reject"):
        report = bench(
            server, rate=1000, process="constant", requests=5, prompt_tokens=5, max_tokens=1500
        )
    assert report.errors == {"no_place": 4}
    assert (report.sent, report.n) == (5, 1)


def test_a_prompt_too_long_and_an_unknown_model_are_errors_of_their_kind(server: Serving) -> None:
    load: dict[str, Any] = {"concurrency": 1, "requests": 1, "max_tokens": 1}
    assert bench(server, prompt_tokens=20_000, **load).errors == {"too_long": 1}
    assert bench(server, prompt_tokens=5, model="nobody", **load).errors == {"error": 1}


def test_a_cache_that_held_the_prompts_before_is_seen_from_afar(server: Serving) -> None:
    load: dict[str, Any] = {"concurrency": 2, "requests": 4, "prompt_tokens": 64, "max_tokens": 2}
    arrivals = Workload(**load).arrivals()
    prompts = {one.salt: (7, i, *range(2, 64)) for i, one in enumerate(arrivals)}
    first, second = (bench(server, prompts=prompts, **load) for _ in range(2))
    assert (first.prefix_hits, first.contaminated) == (0, False)
    assert second.contaminated
    assert (second.prefix_hits or 0) > 0.5
    assert "CONTAMINATED CACHE" in str(second)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    "shared", [{"prefix_tokens": 96, "prefix_groups": 2}, {"turns": 3}], ids=["prefix", "chat"]
)
def test_what_a_run_puts_into_the_cache_itself_is_no_contamination_from_afar(
    server: Serving, exact: bool, shared: dict[str, int]
) -> None:
    load: dict[str, Any] = {"concurrency": 1, "requests": 6, "prompt_tokens": 128, **shared}
    report = bench(server, exact=exact, max_tokens=4, **load)
    assert (report.prefix_hits or 0) > 0.3
    assert not report.contaminated
