"""The driver's own client reads what AsyncOpenAI reads, from our endpoint and from awkward ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from bench.awkward import HEAD, answering
from llmserve.bench.run import client as reading
from llmserve.bench.run.client import Client, ReplyError, ReplyTimeout, StreamedReply
from llmserve.bench.run.sse import MOST, Events, TooLong
from support.examples import examples
from support.serving import KEY, Serving, serving

BODY: dict[str, Any] = {
    "model": "m", "prompt": [1, 2, 3], "max_tokens": 4, "stream": True,
    "stream_options": {"include_usage": True},
}  # fmt: skip
ONE = b'{"choices":[{"text":"one","index":0,"finish_reason":null}],"usage":null}'
TWO = b'{"choices":[{"text":" two","index":0,"finish_reason":"length"}]}'
USAGE = (
    b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'
)
CACHED = USAGE.replace(b'7}', b'7,"prompt_tokens_details":{"cached_tokens":2}}')
DONE = b"data: [DONE]\n\n"
Read = tuple[list[str], str, int | None]


def event(data: bytes, end: bytes = b"\n") -> bytes:
    return b"data: " + data + end + end


async def ours(url: str, body: dict[str, Any] = BODY, key: str = "k") -> StreamedReply | ReplyError:
    async with aclosing(Client(url, key)) as client:
        try:
            return await client.complete(msgspec.json.encode(body), lambda: None, lambda: 0.0)
        except ReplyError as error:
            return error


async def theirs(
    url: str, body: dict[str, Any] = BODY, key: str = "k"
) -> StreamedReply | openai.APIError:
    extra = {name: value for name, value in body.items() if name == "ignore_eos"}
    plain = {name: value for name, value in body.items() if name not in extra}
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
        texts: list[str] = []
        reason, usage = "error", None
        try:
            async for chunk in await client.completions.create(**plain, extra_body=extra):
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    texts += [choice.text] if choice.text else []
                    reason = choice.finish_reason or reason
        except openai.APIError as error:
            return error
    details = None if usage is None else usage.prompt_tokens_details
    return StreamedReply(
        reason=reason,
        tokens=len(texts) if usage is None else usage.completion_tokens,
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        text="".join(texts),
        ended=0.0,
        cached_tokens=None if details is None else details.cached_tokens,
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving("simulator", prefill_ms=1.0, decode_ms=1.0) as served:
        yield served


def test_of_our_endpoint_it_reads_what_asyncopenai_reads(server: Serving) -> None:
    body = {**BODY, "model": server.model, "max_tokens": 30, "ignore_eos": True}

    async def main() -> None:
        url = f"{server.root}/v1"
        found, same = await ours(url, body, KEY), await theirs(url, body, KEY)
        assert found == same
        assert isinstance(found, StreamedReply)
        assert (found.tokens, found.prompt_tokens, found.reason) == (30, 3, "length")
        assert found.cached_tokens == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("change", "key", "status", "code"),
    [
        ({"model": "nobody"}, KEY, 404, "model_not_found"),
        ({"prompt": [1] * 20_000}, KEY, 400, "context_length_exceeded"),
        ({}, "wrong", 401, None),
        ({"max_tokens": -1}, KEY, 400, None),
    ],
)
def test_a_refusal_has_the_code_and_words_that_asyncopenai_gives(
    server: Serving, change: dict[str, Any], key: str, status: int, code: str | None
) -> None:
    body = {**BODY, "model": server.model, **change}

    async def main() -> None:
        url = f"{server.root}/v1"
        found, same = await ours(url, body, key), await theirs(url, body, key)
        assert isinstance(found, ReplyError)
        assert isinstance(same, openai.APIStatusError)
        assert (found.status, found.code) == (same.status_code, same.code or "")
        assert str(found) in str(same)
        assert code in (None, found.code)

    asyncio.run(main())


STREAMS = {
    "plain": [event(ONE), event(TWO), event(USAGE), DONE],
    "no usage": [event(ONE), event(TWO), DONE],
    "usage of a cache": [event(ONE), event(TWO), event(CACHED), DONE],
    "usage of an empty cache": [event(ONE), event(CACHED.replace(b":2}", b":0}")), DONE],
    "usage with no detail": [event(ONE), event(CACHED.replace(b":2}", b":null}")), DONE],
    "no end mark": [event(ONE), event(TWO), event(USAGE)],
    "one piece": [event(ONE) + event(TWO) + event(USAGE) + DONE],
    "crlf": [event(ONE, b"\r\n"), event(TWO, b"\r\n"), event(USAGE, b"\r\n"), DONE],
    "crlf in two": [b"data: " + ONE + b"\r", b"\n\r", b"\n" + event(TWO), DONE],
    "cr": [event(ONE, b"\r"), event(TWO, b"\r"), DONE],
    "lines split": [event(ONE)[:9], event(ONE)[9:-1], b"\n" + event(TWO)[:30], event(TWO)[30:]],
    "keep-alives": [b": ping\n\n", event(ONE), b":\n\n: ping\n\n", event(TWO), b": x\n\n", DONE],
    "no space": [b"data:" + ONE + b"\n\n", b"data:" + TWO + b"\n\n", b"data:[DONE]\n\n"],
    "data in two lines": [b'data: {"choices":[{"text":\ndata: "one"}]}\n\n', event(TWO), DONE],
    "named": [b"event: completion\nid: 1\nretry: 5\n" + event(ONE), event(TWO), DONE],
    "after the end mark": [event(ONE), event(TWO), DONE, event(ONE)],
    "last event unfinished": [event(ONE), b"data: " + TWO + b"\n"],
    "no reason": [event(ONE), DONE],
    "nothing": [DONE],
    "usage at every chunk": [event(ONE.replace(b'"usage":null', USAGE[14:-1])), event(TWO), DONE],
    "two choices": [event(b'{"choices":[{"text":"a"},{"text":"b","finish_reason":"stop"}]}'), DONE],
    "letters split": [event('{"choices":[{"text":"é…"}]}'.encode())[:28],
                      event('{"choices":[{"text":"é…"}]}'.encode())[28:], event(TWO), DONE],
}  # fmt: skip


@pytest.mark.parametrize("pieces", STREAMS.values(), ids=STREAMS)
def test_of_an_awkward_server_it_reads_what_asyncopenai_reads(pieces: Sequence[bytes]) -> None:
    async def main() -> tuple[object, object]:
        async with answering(pieces) as url:
            return await ours(url), await theirs(url)

    found, same = asyncio.run(main())
    assert found == same
    assert isinstance(found, StreamedReply)


@pytest.mark.parametrize(
    "error",
    [b'{"error":{"message":"engine died","code":"engine_error"}}',
     b'{"error":{"message":"out of luck","code":500}}'],
)  # fmt: skip
def test_an_error_in_mid_stream_is_told_as_asyncopenai_tells_it(error: bytes) -> None:
    async def main() -> tuple[object, object]:
        async with answering([event(ONE), event(error), event(TWO), DONE]) as url:
            return await ours(url), await theirs(url)

    found, same = asyncio.run(main())
    assert isinstance(found, ReplyError)
    assert isinstance(same, openai.APIError)
    assert str(found) == str(same)
    assert found.code == str(same.code)


def test_a_connection_that_breaks_in_mid_stream_is_an_error_to_both() -> None:
    async def main() -> tuple[object, object]:
        async with answering([event(ONE)], cut=True) as url:
            try:
                return await ours(url), await theirs(url)
            except Exception as error:  # AsyncOpenAI lets its transport's own error through
                return await ours(url), error

    found, same = asyncio.run(main())
    assert isinstance(found, ReplyError)
    assert isinstance(same, Exception)


@pytest.mark.parametrize(
    "pieces", [[b"data: {not json\n\n"], [event(b'{"choices":7}')], [event(b'["a"]')]]
)
def test_rubbish_is_an_error_and_no_crash(pieces: list[bytes]) -> None:
    async def main() -> object:
        async with answering([event(ONE), *pieces, DONE]) as url:
            return await ours(url)

    assert isinstance(asyncio.run(main()), ReplyError)


def test_a_refusal_that_is_no_json_keeps_its_words() -> None:
    async def main() -> object:
        head = HEAD.replace(b"200 OK", b"502 Bad Gateway")
        async with answering([b"<h1>no backend</h1>"], head=head) as url:
            return await ours(url)

    found = asyncio.run(main())
    assert isinstance(found, ReplyError)
    assert (str(found), found.status) == ("502: <h1>no backend</h1>", 502)


def test_one_connection_serves_request_after_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_DRAIN_S", 30.0)  # what a machine may need for it is not asked
    met: list[str] = []

    async def main() -> None:
        pieces = STREAMS["plain"]
        async with answering(pieces, met=met) as url, aclosing(Client(url, "k")) as client:
            for _ in range(5):
                await client.complete(msgspec.json.encode(BODY), lambda: None, lambda: 0.0)

    asyncio.run(main())
    assert len(met) == 1


def test_no_reply_in_time_is_a_timeout() -> None:
    async def main() -> None:
        async with (
            answering([], mute=True) as url,
            aclosing(Client(url, "k", timeout_s=0.05)) as client,
        ):
            with pytest.raises(ReplyTimeout):
                await client.complete(b"{}", lambda: None, lambda: 0.0)

    asyncio.run(main())


def test_an_address_is_checked_before_it_is_asked() -> None:
    for wrong in ("127.0.0.1:8000", "ftp://x/v1", "http://"):
        with pytest.raises(ValueError, match="http://host:port/v1"):
            Client(wrong, "k")


LINES = st.lists(
    st.sampled_from(
        [b"data: x", b"data:y", b"data: ", b"data", b": c", b"", b"", b"event: e", b"id", b"zz"]
    ),
    max_size=12,
)


@given(LINES, st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=13, max_size=13),
       st.lists(st.integers(0, 200), max_size=6))  # fmt: skip
@settings(max_examples=examples(300), deadline=None)
def test_however_a_stream_is_cut_its_events_are_those_that_openai_finds(
    lines: list[bytes], ends: list[bytes], places: list[int]
) -> None:
    raw = b"".join(line + end for line, end in zip(lines, ends, strict=False))
    cuts = sorted(min(place, len(raw)) for place in places)
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    reader = Events()
    found = [data for piece in pieces for data in reader.feed(piece)]
    assert found == [data for data in expected(raw) if data is not None]


def expected(raw: bytes) -> Iterator[bytes | None]:
    """By openai's decoder, line by line; it tells events without data too."""
    decoder = SSEDecoder()
    had_data = False
    for line in raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]:
        had_data |= line.partition(b":")[0] == b"data"
        found = decoder.decode(line.decode())
        if found is not None or not line:
            yield found.data.encode() if found is not None and had_data else None
            had_data = False


def test_an_event_without_end_is_given_up() -> None:
    for piece in (b"x" * 2**20, b"data: " + b"x" * 2**20 + b"\n"):
        events = Events()
        for _ in range(MOST // 2**20 - 1):
            events.feed(piece)
        with pytest.raises(TooLong):
            events.feed(piece * 2)
