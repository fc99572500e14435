from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.core.knobs import SPECS, Applied, Clamp, KnobBoard, KnobError, Knobs, coerce
from llmserve.scheduling.policies import POLICIES


def test_every_knob_has_help_a_layer_and_bounds_or_choices() -> None:
    for spec in SPECS.values():
        assert spec.help.endswith(".")
        numeric = spec.low is not None and spec.high is not None
        assert spec.choices or spec.read or numeric
        assert spec.default == getattr(Knobs(), spec.name)


def test_every_default_is_within_its_own_bounds() -> None:
    assert Knobs().changed(Knobs().as_dict()) == Knobs()


def test_each_policy_named_in_the_knob_exists_and_no_other() -> None:
    assert set(SPECS["policy"].choices) == {*POLICIES, "custom"}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_num_seqs", "8", 8),
        ("max_num_seqs", 8.0, 8),
        ("priority_aging_s", "2.5", 2.5),
        ("priority_aging_s", "none", None),
        ("max_active", None, None),
        ("batching", "none", "none"),
        ("policy", "priority", "priority"),
        ("tenant_weights", " gold : 3.0, free:1,", "gold:3,free:1"),
        ("tenant_weights", {"a:b": 0.5}, "a:b:0.5"),
        ("tenant_weights", None, ""),
    ],
)
def test_text_and_json_become_the_knobs_own_type(name: str, text: object, value: object) -> None:
    got = coerce(name, text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("max_num_sqs", 8, "did you mean max_num_seqs"),
        ("max_num_seqs", 0, "within 1 and 1,024 requests, not 0"),
        ("max_num_seqs", 8.5, "whole number"),
        ("max_num_seqs", True, "whole number"),
        ("max_num_seqs", float("nan"), "whole number"),
        ("max_num_seqs", [8], "whole number"),
        ("max_num_seqs", None, "needs a value"),
        ("queue_timeout_s", float("inf"), "within 0.01 and 86,400 s, not inf"),
        ("rate_limit_rps", float("inf"), "not inf; none: no limit"),
        ("policy", [1, 2], "fifo, priority"),
        ("policy", "lifo", "fifo, priority"),
        ("tenant_weights", "gold", "no name:weight"),
        ("tenant_weights", "gold:0", "within 0.001 and 1,000"),
        ("tenant_weights", "gold:nan", "no name:weight"),
        ("tenant_weights", "gold:x", "'gold:x' is no name:weight"),
        ("tenant_weights", "a:1,a:2", "two weights"),
        ("tenant_weights", 3, "takes text"),
    ],
)
def test_a_wrong_value_is_refused_with_the_cure_and_changes_nothing(
    name: str, value: object, says: str
) -> None:
    knobs = Knobs()
    with pytest.raises(KnobError, match=says):
        knobs.changed({"queue_max": 1, name: value})
    assert knobs == Knobs()


@given(st.sampled_from(sorted(SPECS)), st.one_of(st.none(), st.text(), st.floats(), st.integers()))
def test_any_value_is_taken_within_bounds_or_refused(name: str, value: object) -> None:
    try:
        got = coerce(name, value)
    except KnobError:
        return
    spec = SPECS[name]
    if isinstance(got, int | float):
        assert spec.low is not None
        assert spec.high is not None
        assert spec.low <= got <= spec.high


def test_updates_from_many_threads_lose_none() -> None:
    board = KnobBoard()
    seen: list[int] = []
    board.watch(lambda before, after: seen.append(after.queue_max))
    threads = [
        threading.Thread(target=board.update, args=(["queue_max"], Knobs(queue_max=n)))
        for n in range(1, 21)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(1, 21))


def test_a_watcher_that_left_hears_nothing() -> None:
    board = KnobBoard()
    seen: list[Knobs] = []
    leave = board.watch(lambda before, after: seen.append(after))
    leave()
    leave()
    board.update(["queue_max"], Knobs(queue_max=5))
    assert seen == []


def test_applied_says_in_words_what_was_clamped_and_when_it_took_effect() -> None:
    applied = Applied(
        Knobs(max_num_seqs=256),
        {"max_num_seqs": (32, 256)},
        (Clamp("max_num_seqs", 999, 256, "the start-up ceiling"),),
        adopted_step=12,
        ms=3.21,
    )
    assert str(applied) == (
        "max_num_seqs: 32 → 256; max_num_seqs: asked 999, got 256 (the start-up ceiling) "
        "at step 12 (3.21 ms)"
    )
