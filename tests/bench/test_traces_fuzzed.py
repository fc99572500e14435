"""Traces as they come: whatever a file holds, it is replayed or refused in words."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmserve.bench.load.traces import TraceFormatError, read_load
from support.examples import examples

CELL = st.one_of(
    st.integers(-5, 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(["", "nan", "inf", "1e999", "2023-11-16 18:17:03.9799600", "12", " 7 ",
                     "2023-11-16T18:17:03Z", "9999-99-99", "0001-01-01 00:00:00+23:59", "x,y",
                     '"', "\x00", "é", "\r"]),
    st.text(max_size=6),
)  # fmt: skip
HEADS = st.sampled_from(
    ["TIMESTAMP,ContextTokens,GeneratedTokens", "timestamp,input_tokens,output_tokens",
     "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type", "a,b", ""]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5)
    | st.sampled_from(["human", "gpt", "conversations", "from", "value"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["conversations", "from", "value", "id"]), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


def replayed_or_refused(name: str, raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(raw)
        for how in ({}, {"rate": 5.0}, {"concurrency": 2}):
            refused, load = "", None
            try:
                load = read_load(path, **how)
            except TraceFormatError as error:
                refused = str(error)
            except ValueError as error:
                refused = str(error) if not how else ""
            if load is None:
                assert name in refused
                continue
            arrivals = list(load.arrivals())
            assert arrivals
            assert all(math.isfinite(a.at_s) and a.at_s >= 0 for a in arrivals)
            assert all(a.prompt_tokens >= 1 and a.max_tokens >= 1 for a in arrivals)
            assert [a.at_s for a in arrivals] == sorted(a.at_s for a in arrivals)


@given(HEADS, st.lists(st.lists(CELL, max_size=7), max_size=5))
@example("timestamp,input_tokens,output_tokens", [["nan", "1", "1"], ["1", "1", "1"]])
@example("timestamp,input_tokens,output_tokens", [["1", "1"]])
@settings(max_examples=examples(300), deadline=None)
def test_a_table(head: str, rows: list[list[str]]) -> None:
    text = "\n".join([head, *(",".join(row) for row in rows)])
    replayed_or_refused("t.csv", text.encode("utf-8", "surrogatepass"))


@given(st.lists(JSON, max_size=4))
@example([{"conversations": "ab"}])
@example([{"conversations": [3, {"from": "human", "value": None}, {"from": "gpt", "value": 4}]}])
@settings(max_examples=examples(300), deadline=None)
def test_chats(chats: list[object]) -> None:
    replayed_or_refused("t.json", json.dumps(chats).encode())


@given(st.sampled_from(["t.csv", "t.json", "t.jsonl"]), st.binary(max_size=60))
@example("t.json", b"[" * 100_000)
@example("t.csv", b"\xff\xfe")
@settings(max_examples=examples(300), deadline=None)
def test_any_bytes(name: str, raw: bytes) -> None:
    replayed_or_refused(name, raw)


def test_a_time_that_is_none_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("timestamp,input_tokens,output_tokens\n1,2,3\nnan,2,3\n")
    with pytest.raises(TraceFormatError, match=r"t\.csv, line 3: nan is no time"):
        read_load(path)
