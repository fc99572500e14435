"""Loads that others recorded, read and sent again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.world import World
from llmserve.bench.load.traces import TraceFormatError, read_load
from llmserve.bench.results.report import Report
from llmserve.bench.run.driver import Bench, ServiceTarget
from llmserve.observe.trace import TraceWriter
from support.scripted import ByteTokenizer

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,374,44
2023-11-16 18:17:04.0319600,396,109
2023-11-16 18:17:05.9799600,879,55
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,Conversation log
"""
SHARE = [
    {"id": "a", "conversations": [
        {"from": "human", "value": "x" * 40}, {"from": "gpt", "value": "y" * 80},
        {"from": "human", "value": "z" * 8}, {"from": "gpt", "value": "w" * 4},
    ]},
    {"id": "b", "conversations": [{"from": "gpt", "value": "nobody asked"}]},
    {"id": "c", "conversations": [
        {"from": "system", "value": "s"}, {"from": "human", "value": "hey"},
        {"from": "gpt", "value": "ho"},
    ]},
]  # fmt: skip


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_azures_dates_become_seconds_after_the_first(tmp_path: Path) -> None:
    load = read_load(written(tmp_path, "azure.csv", AZURE))
    assert [a.at_s for a in load.arrivals()] == pytest.approx([0, 0.052, 2.0])
    assert [(a.prompt_tokens, a.max_tokens) for a in load.arrivals()] == [
        (374, 44), (396, 109), (879, 55)
    ]
    assert str(load) == "replay of azure.csv, as recorded: 3 requests, 1,649 tokens in, 208 out"


def test_burstgpts_failures_are_left_out_and_speed_shrinks_time(tmp_path: Path) -> None:
    load = read_load(written(tmp_path, "burst.csv", BURST), speed=10)
    assert [(a.at_s, a.prompt_tokens) for a in load.arrivals()] == [(0, 472), (11.3, 417)]


def test_sharegpt_has_chats_and_no_times(tmp_path: Path) -> None:
    path = written(tmp_path, "share.json", json.dumps(SHARE))
    first, second = read_load(path, concurrency=2).arrivals()
    assert (first.prompt_tokens, first.max_tokens, len(first.later)) == (10, 20, 1)
    assert (second.prompt_tokens, second.max_tokens) == (1, 1)
    exact = next(read_load(path, concurrency=2, tokenizer=ByteTokenizer()).arrivals())
    assert (exact.prompt_tokens, exact.later[0].max_tokens) == (40, 4)
    with pytest.raises(ValueError, match="no times: give rate or concurrency"):
        read_load(path)
    assert [a.at_s for a in read_load(path, rate=5).arrivals()] != [0, 0]


def test_json_may_begin_with_a_mark_or_an_empty_line(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "hello you"}, {"from": "gpt", "value": "hi"}]
    text = json.dumps([{"conversations": talk}])
    for before in ("\ufeff", "\n  "):
        assert read_load(written(tmp_path, "x.json", before + text), rate=1).about == 1


@pytest.mark.parametrize("name", ["concurrency", "requests"])
def test_a_count_of_none_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, "x.csv", "timestamp,input_tokens,output_tokens\n1,2,3\n")
    with pytest.raises(ValueError, match=f"{name} must be 1 or more, not 0"):
        read_load(path, **{name: 0})  # type: ignore[arg-type]  # either is a count


def test_only_so_many_and_none_too_long(tmp_path: Path) -> None:
    path = written(tmp_path, "azure.csv", AZURE)
    assert read_load(path, requests=2).about == 2
    assert [a.prompt_tokens for a in read_load(path, longest=500).arrivals()] == [374]
    with pytest.raises(TraceFormatError, match="no request"):
        read_load(path, longest=5)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.csv", "a,b\n1,2\n", "no column timestamp"),
        ("x.csv", "timestamp,input_tokens,output_tokens\nsoon,1,2\n", "line 2"),
        ("x.csv", "timestamp,input_tokens,output_tokens\n1,2\n", "line 2: it has no output_tokens"),
        ("x.csv", "", "it has none"),
        ("x.csv", "timestamp,input_tokens,output_tokens\n", "no request to replay"),
        ("x.json", "[1]", "no ShareGPT"),
        ("x.json", "[]", "no request to replay"),
        ("x.json", "", "no trace of llmserve"),
        ("x.jsonl", "hello", "no trace of llmserve"),
    ],
)
def test_a_file_of_no_known_kind_is_refused_in_words(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    with pytest.raises(TraceFormatError, match=words):
        read_load(written(tmp_path, name, text), concurrency=1)


def test_our_own_trace_comes_again_at_the_same_times_and_lengths(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"

    async def record(world: World) -> None:
        writer = TraceWriter(
            str(path), t=world.clock.now(), model="m", engine="simulator", knobs={}
        )
        world.bus.attach(writer)
        await world.bench(rate=20, duration_s=2.0, prompt_tokens=(5, 60), max_tokens=(1, 9)).run()
        world.bus.detach(writer)
        writer.close()

    async def again(world: World) -> Report:
        return await Bench(ServiceTarget(world.service, world.bus), read_load(path)).run()

    first = World()
    first.run(record)
    second = World()
    report = second.run(again)
    rows, others = first.telemetry.requests.rows(), second.telemetry.requests.rows()
    assert [(r.prompt_tokens, r.max_tokens) for r in rows] == [
        (r.prompt_tokens, r.max_tokens) for r in others
    ]
    gaps = [r.arrival - rows[0].arrival for r in rows]
    assert [r.arrival - others[0].arrival for r in others] == pytest.approx(gaps, abs=1e-6)
    assert report.n == len(rows) > 20


MOONCAKE = """{"timestamp": 0, "input_length": 1200, "output_length": 5, "hash_ids": [1, 2, 3]}
{"timestamp": 500, "input_length": 1100, "output_length": 7, "hash_ids": [1, 2, 4]}
{"timestamp": 3000, "input_length": 512, "output_length": 9, "hash_ids": [1]}
{"timestamp": 3500, "input_length": 20, "output_length": 0, "hash_ids": [9]}
"""


def test_mooncakes_times_lengths_and_shared_beginnings_are_replayed(tmp_path: Path) -> None:
    path = tmp_path / "conversation_trace.jsonl"
    path.write_text(MOONCAKE)
    first, second, third = read_load(path).recorded
    assert [a.at_s for a in (first, second, third)] == [0.0, 0.5, 3.0]
    assert [a.max_tokens for a in (first, second, third)] == [5, 7, 9]
    assert (first.prefix_tokens, second.prefix_tokens) == (1024, 1024)
    assert first.prefix_salt == second.prefix_salt != third.prefix_salt
    assert third.prefix_tokens == 511, "a prompt has a token of its own"


def test_a_line_that_is_none_of_mooncakes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(MOONCAKE + '{"timestamp": 1, "input_length": -4, "output_length": 5}\n')
    with pytest.raises(TraceFormatError, match="line 5: input_length must be within 0"):
        read_load(path)
