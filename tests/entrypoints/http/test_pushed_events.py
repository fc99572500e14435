"""Streamed answers as they are pushed: every chunk once and in order, whatever the pace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.core.types import Chunk, Outcome, Request, SamplingParams, TokenLogprob, Usage
from llmserve.engines.base import EngineError
from llmserve.entrypoints.http.asgi import JsonAnswer
from llmserve.entrypoints.http.leaving import Exchange
from llmserve.entrypoints.http.pacing import Pacer
from llmserve.entrypoints.http.pushed_events import PushedEvents
from llmserve.serving.stream import Stream


def stream(id: str) -> Stream:
    request = Request(id=id, prompt_ids=(1,), sampling=SamplingParams(), arrival=0.0)
    return Stream(request, lambda: None)


class Lines:
    """A reply whose frames are lines that hold all of a chunk; none for one that has nothing."""

    def frame(self, choice: int, chunk: Chunk) -> bytes:
        if chunk.text == "unspeakable":
            raise RuntimeError("no frame for this")
        logprobs = [one.token_id for one in chunk.logprobs or ()]
        line = (choice, chunk.text, chunk.token_ids, logprobs, chunk.finish_reason)
        return msgspec.json.encode(line) + b"\n" if chunk.token_ids or chunk.text else b""

    def end(self, usage: Usage) -> bytes:
        return b""

    def whole(self, outcomes: Sequence[Outcome], usage: Usage) -> bytes:
        return b""


class Client:
    """What reaches one, by both ways, and whether it keeps up."""

    def __init__(self, keeps_up: Callable[[], bool] = lambda: True) -> None:
        self.parts: list[bytes] = []
        exchange = Exchange(body_is_here=True)
        exchange.write = self._write
        self._keeps_up = keeps_up
        self.answer = JsonAnswer(self._send, exchange)

    def _write(self, body: bytes) -> bool:
        if keeps_up := self._keeps_up():
            self.parts.append(body)
        return keeps_up

    async def _send(self, message: object) -> None:
        await asyncio.sleep(0)
        assert isinstance(message, dict)
        self.parts.append(message.get("body", b""))

    def lines(self, newest: bytes = b"") -> list[list[object]]:
        return [msgspec.json.decode(line) for line in b"".join([*self.parts, newest]).splitlines()]


def push(streams: Sequence[Stream], client: Client, pacer: Pacer) -> PushedEvents:
    return PushedEvents(streams, Lines(), client.answer, pacer)


_CHUNKS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["", "a", "bé", "\n"]), st.integers(0, 2)),
    max_size=30,
)


@given(
    chunks=_CHUNKS,
    pauses=st.lists(st.integers(0, 2), min_size=1, max_size=8),
    slow=st.lists(st.booleans(), min_size=1, max_size=5),
    longest_s=st.sampled_from([0.0, 0.0001, 0.002]),
)
def test_every_chunk_arrives_once_and_in_order(
    chunks: list[tuple[int, str, int]], pauses: list[int], slow: list[bool],
    longest_s: float,
) -> None:  # fmt: skip
    counts = iter(range(10_000))

    async def main() -> list[list[object]]:
        streams = [stream(str(i)) for i in range(3)]
        client = Client(lambda: not slow[next(counts) % len(slow)])
        pacer = Pacer(lambda: longest_s)
        pushed = asyncio.create_task(push(streams, client, pacer).send_all())
        for place, (choice, text, tokens) in enumerate(chunks):
            logprobs = tuple(TokenLogprob(place, 0.0) for _ in range(tokens))
            streams[choice].put(
                Chunk(text=text, token_ids=(place,) * tokens, logprobs=logprobs), 1.0
            )
            for _ in range(pauses[place % len(pauses)]):
                await asyncio.sleep(0)
        for one in streams:
            one.end(Chunk(finish_reason="stop"), 1.0)
        newest = await asyncio.wait_for(pushed, 10)
        assert pacer.open == 0
        return client.lines(newest)

    lines = asyncio.run(main())
    for choice in range(3):
        sent = [(text, [place] * n) for place, (c, text, n) in enumerate(chunks) if c == choice]
        own = [line for line in lines if line[0] == choice]
        assert "".join(str(line[1]) for line in own) == "".join(text for text, _ in sent)
        tokens = [token for line in own for token in line[2]]  # type: ignore[attr-defined]
        assert tokens == [token for _, tokens in sent for token in tokens]
        assert tokens == [token for line in own for token in line[3]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("failing", [0, 1])
def test_one_failing_stream_fails_the_answer_once_all_before_it_is_sent(failing: int) -> None:
    async def main() -> list[list[object]]:
        streams, client = [stream("0"), stream("1")], Client()
        pushed = asyncio.create_task(push(streams, client, Pacer(lambda: 0.0)).send_all())
        streams[1 - failing].put(Chunk(text="a", token_ids=(1,)), 1.0)
        await asyncio.sleep(0.01)
        streams[failing].put(Chunk(text="b", token_ids=(2,)), 1.0)
        streams[failing].end(Chunk(finish_reason="error"), 1.0, EngineError("died"))
        with pytest.raises(EngineError, match="died"):
            await asyncio.wait_for(pushed, 5)
        return client.lines()

    assert [line[1] for line in asyncio.run(main())] == ["a", "b"]


def test_an_event_that_cannot_be_made_ends_its_own_answer_and_no_other() -> None:
    async def main() -> list[list[object]]:
        bad, good, pacer, client = stream("bad"), stream("good"), Pacer(lambda: 0.0), Client()
        answers = [push([bad], Client(), pacer), push([good], client, pacer)]
        first, second = (asyncio.create_task(one.send_all()) for one in answers)
        for text in ("a", "unspeakable", "c"):
            bad.put(Chunk(text=text, token_ids=(1,)), 1.0)
            good.put(Chunk(text="fine", token_ids=(1,)), 1.0)
            await asyncio.sleep(0.005)
        with pytest.raises(RuntimeError, match="no frame for this"):
            await asyncio.wait_for(first, 5)
        good.end(Chunk(finish_reason="stop"), 1.0)
        return client.lines(await asyncio.wait_for(second, 5))

    assert [line[1] for line in asyncio.run(main())] == ["fine"] * 3


def test_the_interval_follows_how_many_stream_up_to_the_longest() -> None:
    pacer = Pacer(lambda: 0.05)
    assert pacer.interval_s == 0
    pacer.open = 1
    one = pacer.interval_s
    pacer.open = 100
    assert pacer.interval_s == pytest.approx(100 * one)
    pacer.open = 10_000
    assert pacer.interval_s == 0.05
    assert Pacer(lambda: 0.0).interval_s == 0


def test_a_client_that_does_not_read_gets_all_of_it_later_in_one_event() -> None:
    reads = False

    async def main() -> tuple[int, list[list[object]]]:
        nonlocal reads
        one, client, gate = stream("0"), Client(lambda: reads), asyncio.Event()
        send = client.answer._send

        async def held(message: object) -> None:
            if client.parts and not reads:
                await gate.wait()
            await send(message)  # type: ignore[arg-type]

        client.answer._send = held
        pushed = asyncio.create_task(push([one], client, Pacer(lambda: 1e-6)).send_all())
        for number in range(50):
            one.put(Chunk(text=f"{number} ", token_ids=(number,)), 1.0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        before = len(client.lines())
        reads = True
        gate.set()
        await asyncio.sleep(0.01)
        one.end(Chunk(finish_reason="stop"), 1.0)
        return before, client.lines(await asyncio.wait_for(pushed, 5))

    before, lines = asyncio.run(main())
    assert before < 50
    assert len(lines) < 10, "what waited was joined"
    assert "".join(str(line[1]) for line in lines) == "".join(f"{n} " for n in range(50))
