"""The engine's rules, without its process: how replies end, leave, fail and are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.tiny_models import EOS, VOCAB, Drive, Driven, generate, reference

PROMPT = (7, 99, 140, 31)


def run(drive: Drive, folder: Path, **sampling: Any) -> Driven:
    driven = drive(folder)
    driven.submit("a", PROMPT, **sampling)
    driven.finish()
    return driven


def test_a_reply_ends_at_max_tokens(llama: Path, drive: Drive) -> None:
    driven = run(drive, llama, max_tokens=5, temperature=0)
    assert len(driven.tokens("a")) == 5
    assert driven.end("a").finish_reason == "length"


def test_the_end_token_ends_a_reply_and_has_no_text(llama: Path, drive: Drive) -> None:
    driven = drive(llama)
    driven.runner._model.eos_ids = frozenset({generate(reference(llama), PROMPT, 3)[2]})
    try:
        driven.submit("stops", PROMPT, max_tokens=9, temperature=0)
        driven.submit("goes on", PROMPT, max_tokens=9, temperature=0, ignore_eos=True)
        driven.finish()
    finally:
        driven.runner._model.eos_ids = frozenset({EOS})
    assert len(driven.tokens("stops")) <= 3
    assert driven.end("stops").finish_reason == "stop"
    assert driven.end("stops").stop_reason is None
    assert driven.end("stops").text == ""
    assert len(driven.tokens("goes on")) == 9


def test_a_stop_token_ends_a_reply_and_is_named(llama: Path, drive: Drive) -> None:
    reply = generate(reference(llama), PROMPT, 6)
    driven = run(drive, llama, max_tokens=20, temperature=0, stop_token_ids=(reply[4],))
    assert driven.tokens("a") == reply[: reply.index(reply[4]) + 1]
    assert driven.end("a").stop_reason == reply[4]


def test_a_stop_string_is_never_told(llama: Path, drive: Drive) -> None:
    whole = run(drive, llama, max_tokens=30, temperature=0).text("a")
    middle = len(whole) // 2
    stop = whole[middle : middle + 4]
    assert len(stop) == 4
    driven = run(drive, llama, max_tokens=30, temperature=0, stop=("never there", stop))
    assert driven.text("a") == whole[: whole.index(stop)]
    assert driven.end("a").stop_reason == stop
    assert driven.end("a").finish_reason == "stop"
    assert len(driven.tokens("a")) < 30


def test_what_was_held_back_is_told_in_the_end(llama: Path, drive: Drive) -> None:
    whole = run(drive, llama, max_tokens=12, temperature=0).text("a")
    driven = run(drive, llama, max_tokens=12, temperature=0, stop=(whole[-3:] + "and no more",))
    assert driven.text("a") == whole


def test_a_seed_says_the_same_whatever_else_is_in_the_batch(llama: Path, drive: Drive) -> None:
    sampling: dict[str, Any] = {"max_tokens": 20, "temperature": 0.9, "top_p": 0.95, "seed": 5}
    alone = run(drive, llama, **sampling).tokens("a")
    crowd = drive(llama, kv_blocks=30, max_num_batched_tokens=9)
    for i in range(9):
        crowd.submit(f"other{i}", (3 + i, 8), max_tokens=15, temperature=1.5, top_k=20 + i)
    crowd.step()
    crowd.submit("a", PROMPT, **sampling)
    crowd.finish()
    assert crowd.tokens("a") == alone
    assert any(step.record and step.record.preempted for step in crowd.steps)


def test_requests_without_a_seed_differ(llama: Path, drive: Drive) -> None:
    driven = drive(llama)
    for i in range(3):
        driven.submit(f"r{i}", PROMPT, max_tokens=20, temperature=1.0)
    driven.finish()
    assert len({tuple(driven.tokens(f"r{i}")) for i in range(3)}) == 3


def test_penalties_survive_preemption(llama: Path, drive: Drive) -> None:
    sampling: dict[str, Any] = {
        "max_tokens": 25, "temperature": 0, "repetition_penalty": 1.3, "frequency_penalty": 0.7,
    }
    alone = run(drive, llama, **sampling).tokens("a")
    assert alone != run(drive, llama, max_tokens=25, temperature=0).tokens("a")
    crowd = drive(llama, kv_blocks=24)
    for i in range(5):
        crowd.submit(f"r{i}", PROMPT, **sampling)
    crowd.finish()
    assert any(step.record and step.record.preempted for step in crowd.steps)
    assert all(crowd.tokens(f"r{i}") == alone for i in range(5))


def test_repetition_penalty_is_that_of_generate(llama: Path, drive: Drive) -> None:
    ids = torch.tensor([PROMPT])
    expected = reference(llama).generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20,
        repetition_penalty=1.5,
    )[0, len(PROMPT) :].tolist()
    driven = run(drive, llama, max_tokens=20, temperature=0, repetition_penalty=1.5)
    assert driven.tokens("a") == expected


def test_logprobs_are_those_of_the_model(llama: Path, drive: Drive) -> None:
    driven = run(drive, llama, max_tokens=6, temperature=0, logprobs=3)
    tokens = driven.tokens("a")
    ids = torch.tensor([[*PROMPT, *tokens]])
    with torch.inference_mode():
        expected = reference(llama)(ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    told = [one for delta in driven.deltas["a"] for one in delta.logprobs or ()]
    assert [one.token_id for one in told] == tokens
    for one, row in zip(told, expected, strict=True):
        assert one.logprob == pytest.approx(row[one.token_id].item(), abs=1e-4)
        assert [token for token, _ in one.top] == row.topk(3).indices.tolist()


def test_leaving_frees_kv_at_once(llama: Path, drive: Drive) -> None:
    driven = drive(llama)
    driven.submit("a", PROMPT, max_tokens=50)
    driven.submit("b", PROMPT, max_tokens=50)
    driven.step()
    driven.abort("a")
    assert driven.runner.planner.kv_used_blocks == 1
    assert len(driven.runner.kv) == 1
    driven.runner.check()
    driven.abort("b")
    assert driven.runner.planner.kv_used_blocks == 0
    assert not driven.step()


def test_leaving_while_waiting_runs_nothing(llama: Path, drive: Drive) -> None:
    driven = drive(llama, max_num_seqs=1)
    driven.submit("a", PROMPT, max_tokens=4)
    driven.submit("b", PROMPT, max_tokens=4)
    driven.step()
    driven.abort("b")
    driven.finish()
    assert driven.tokens("b") == []
    assert driven.end("a").finish_reason == "length"


def test_a_request_that_can_never_run_fails_alone(llama: Path, drive: Drive) -> None:
    driven = drive(llama, kv_blocks=8)
    driven.submit("a", PROMPT, max_tokens=4, temperature=0)
    driven.submit("too long", (5,) * 40, max_tokens=4)
    driven.finish()
    assert driven.end("too long").finish_reason == "error"
    assert "40 tokens" in (driven.end("too long").error or "")
    assert driven.tokens("a") == generate(reference(llama), PROMPT, 4)


def test_a_step_that_fails_ends_its_members_and_nobody_else(
    llama: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    driven = drive(llama, max_num_seqs=2)
    for name in ("a", "b", "waits"):
        driven.submit(name, PROMPT, max_tokens=4, temperature=0)
    driven.step()
    real, model = type(driven.runner._model).forward, type(driven.runner._model)
    monkeypatch.setattr(model, "forward", lambda *_: 1 / 0)
    driven.step()
    monkeypatch.setattr(model, "forward", real)
    driven.finish()
    assert {driven.end(name).finish_reason for name in ("a", "b")} == {"error"}
    assert "ZeroDivisionError" in (driven.end("a").error or "")
    assert driven.tokens("waits") == generate(reference(llama), PROMPT, 4)
    assert "ZeroDivisionError" in capsys.readouterr().err
    told = [step.record.index for step in driven.steps if step.record]
    assert told == list(range(len(told)))


def test_a_reply_ends_where_the_context_does(llama: Path, drive: Drive) -> None:
    driven = drive(llama)
    prompt = [3 + i % (VOCAB - 3) for i in range(506)]
    driven.submit("a", prompt, max_tokens=100, temperature=0, ignore_eos=True)
    driven.finish()
    assert len(driven.tokens("a")) == 512 - 506
    assert driven.end("a").finish_reason == "length"


def test_nothing_ends_a_reply_before_min_tokens(llama: Path, drive: Drive) -> None:
    whole = run(drive, llama, max_tokens=12, temperature=0).text("a")
    sampling: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "stop": (whole[:1],)}
    assert run(drive, llama, **sampling).text("a") == ""
    driven = run(drive, llama, min_tokens=6, **sampling)
    assert len(driven.tokens("a")) >= 6
    assert driven.text("a")
    assert whole.startswith(driven.text("a"))
