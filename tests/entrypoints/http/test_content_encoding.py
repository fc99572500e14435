"""Bodies that come compressed: decoded under the same bounds as plain ones."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.entrypoints.http.asgi import MAX_BODY_BYTES
from llmserve.entrypoints.http.content_encoding import (
    MOST_CODINGS,
    MOST_MEMBERS,
    PIECE_BYTES,
    Decoding,
    as_read,
)
from llmserve.entrypoints.http.errors import ApiError
from support.serving import MESSAGES, Serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, object] = {"messages": MESSAGES, "max_tokens": 4, "temperature": 0}


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


def in_members(data: bytes) -> bytes:
    """As block compressors write it: one gzip stream behind the other."""
    return b"".join(gzip.compress(data[at : at + 40]) for at in range(0, len(data), 40))


CODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZip", gzip.compress),
    "gzip in blocks": ("gzip", in_members),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "none": ("identity", bytes),
    "two": ("gzip, deflate", lambda data: zlib.compress(gzip.compress(data))),
    "many": (
        "deflate,identity,gzip,deflate",
        lambda data: zlib.compress(gzip.compress(raw_deflate(data))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_compressed_body_is_read_as_if_it_came_plain(
    server: Serving, coder: str, chunked: bool
) -> None:
    name, compress = CODERS[coder]
    sent = compress(json.dumps(ASK).encode())
    content = (bytes([byte]) for byte in sent) if chunked else sent
    with server.http() as http:
        plain = http.post(CHAT, json=ASK).json()
        headers = {"Content-Encoding": name, "Content-Type": "application/json"}
        told = http.post(CHAT, content=content, headers=headers)
    assert told.status_code == 200, told.text
    assert told.json()["choices"][0]["message"] == plain["choices"][0]["message"]


def test_other_routes_read_it_too(own: Serving) -> None:
    with own.http() as http:
        content = gzip.compress(json.dumps({"max_num_seqs": 3}).encode())
        told = http.patch("/llmserve/knobs", content=content, headers={"Content-Encoding": "gzip"})
        assert told.status_code == 200
        assert own.service.board.current.max_num_seqs == 3


@pytest.mark.parametrize("name", ["br", "zstd", "compress", "gzip, br", "aws-chunked", "gzip;q=1"])
def test_another_coding_is_refused_by_its_name(server: Serving, name: str) -> None:
    with server.http() as http:
        headers = {"Content-Encoding": name}
        told = http.post(CHAT, content=gzip.compress(b"{}"), headers=headers)
    assert told.status_code == 415
    assert told.headers["accept-encoding"] == "gzip, deflate, identity"
    assert repr(name.removeprefix("gzip, ")) in told.json()["error"]["message"]
    assert told.json()["error"]["code"] == "unsupported_encoding"


def test_more_codings_than_anyone_needs_are_refused(server: Serving) -> None:
    with server.http() as http:
        headers = [("Content-Encoding", "gzip")] * (MOST_CODINGS + 1)
        told = http.post(CHAT, content=b"", headers=headers)
    assert told.status_code == 415
    assert str(MOST_CODINGS) in told.json()["error"]["message"]


GOOD = gzip.compress(json.dumps(ASK).encode())
CORRUPT = {
    "cut short": ("gzip", GOOD[:-1]),
    "of one byte": ("deflate", b"\x78"),
    "no gzip at all": ("gzip", json.dumps(ASK).encode()),
    "with a wrong sum": ("gzip", GOOD[:-8] + bytes(8)),
    "with something behind it": ("gzip", GOOD + b"more"),
    "deflate with something behind it": ("deflate", zlib.compress(b"{}") + b"\0"),
    "with a broken middle": ("gzip", GOOD[:20] + b"\xff" * 10 + GOOD[30:]),
    "zlib that needs a dictionary": ("deflate", bytes([0x78, 0xBB]) + bytes(20)),
    "of very many streams": ("gzip", gzip.compress(b"") * (MOST_MEMBERS + 1)),
    "once, not twice": ("gzip, gzip", GOOD),
}


@pytest.mark.parametrize("how", CORRUPT)
def test_a_body_that_is_not_what_its_header_says_is_the_clients_mistake(
    server: Serving, how: str
) -> None:
    name, content = CORRUPT[how]
    with server.http() as http:
        told = http.post(CHAT, content=content, headers={"Content-Encoding": name})
    assert told.status_code == 400
    assert told.json()["error"]["code"] == "invalid_encoding"


def bomb(layers: int) -> bytes:
    content = gzip.compress(b"[" + b" " * (20 * MAX_BODY_BYTES) + b"]", 9)
    for _ in range(layers - 1):
        content = gzip.compress(content, 9)
    return content


@pytest.mark.parametrize("layers", [1, 2])
def test_a_bomb_is_refused_before_it_is_unpacked(own: Serving, layers: int) -> None:
    content = bomb(layers)
    assert len(content) < MAX_BODY_BYTES / 20
    with own.http() as http:
        headers = {"Content-Encoding": ", ".join(["gzip"] * layers)}
        http.get("/health")
        tracemalloc.start()
        try:
            told = http.post(CHAT, content=content, headers=headers)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert told.status_code == 413
    assert told.json()["error"]["code"] == "request_too_large"
    assert most < 4 * MAX_BODY_BYTES


def test_what_is_large_only_between_two_codings_is_a_bomb_too(own: Serving) -> None:
    empty_blocks = b"\x00\x00\x00\xff\xff" * (MAX_BODY_BYTES // 5 + 2) + b"\x03\x00"
    assert zlib.decompress(empty_blocks, -zlib.MAX_WBITS) == b""
    content = gzip.compress(empty_blocks)
    with own.http() as http:
        headers = {"Content-Encoding": "deflate, gzip"}
        assert http.post(CHAT, content=content, headers=headers).status_code == 413


def test_too_many_values_are_counted_as_they_are_unpacked(own: Serving) -> None:
    content = gzip.compress(b"[" + b"0," * (MAX_BODY_BYTES // 2 - 2) + b"0]")
    with own.http() as http:
        told = http.post(COMPLETIONS, content=content, headers={"Content-Encoding": "gzip"})
    assert told.status_code == 413
    assert "commas and brackets" in told.json()["error"]["message"]


def test_a_long_body_within_the_bound_is_unpacked_to_its_end(own: Serving) -> None:
    text = json.dumps({"prompt": "a" * (7 * 2**20), "max_tokens": 1}).encode()
    with own.http() as http:
        headers = {"Content-Encoding": "deflate"}
        told = http.post(COMPLETIONS, content=zlib.compress(text), headers=headers)
    assert told.status_code == 400
    assert told.json()["error"]["code"] == "context_length_exceeded"


LAYERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress, b"x-gzip": gzip.compress, b"deflate": zlib.compress,
}  # fmt: skip


@given(
    st.binary(max_size=300) | st.integers(0, 3 * PIECE_BYTES).map(lambda n: b"ab" * n),
    st.lists(st.sampled_from(sorted(LAYERS)), max_size=MOST_CODINGS),
    st.lists(st.integers(1, 2000), max_size=8),
)
def test_any_bytes_come_out_as_they_went_in_however_they_are_cut(
    data: bytes, names: Sequence[bytes], cuts: Sequence[int]
) -> None:
    coded = data
    for name in names:
        coded = LAYERS[name](coded)
    decoding, out = Decoding([*names]), b""
    for cut in [*cuts, len(coded)]:
        for piece in decoding.feed(coded[:cut]):
            assert not names or len(piece) <= PIECE_BYTES
            out += piece
        coded = coded[cut:]
    decoding.end()
    assert out == data


@given(st.binary(max_size=400), st.sampled_from([b"gzip", b"deflate"]))
def test_no_bytes_at_all_break_it(data: bytes, name: bytes) -> None:
    decoding = Decoding([name])
    with suppress(ApiError):
        assert all(len(piece) <= PIECE_BYTES for piece in decoding.feed(data))
        decoding.end()


def test_who_gets_the_body_next_gets_headers_that_fit_it() -> None:
    plain = [(b"content-type", b"application/json"), (b"content-length", b"9"), (b"x", b"1")]
    assert as_read({"headers": plain}, b"{}")["headers"] is plain
    coded = [*plain, (b"content-encoding", b"gzip"), (b"transfer-encoding", b"chunked")]
    fit = [plain[0], plain[2], (b"content-length", b"2")]
    assert as_read({"headers": coded}, b"{}")["headers"] == fit
    assert dict(as_read({"headers": []}, b"{}")["headers"]) == {
        b"content-type": b"application/json",
        b"content-length": b"2",
    }
