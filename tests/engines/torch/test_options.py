from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmserve.engines.registry import create
from llmserve.engines.torch.kv import budget
from llmserve.engines.torch.kv.budget import kv_capacity
from llmserve.engines.torch.kv.store import Geometry
from llmserve.engines.torch.options import TorchOptions, cores, parse

GEOMETRY = Geometry(4, 2, 8, 8, torch.bfloat16, torch.device("cpu"))


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("max_modle_len", "did you mean max_model_len"),
        ("max_num_seq", "did you mean max_num_seqs"),  # a knob, which serve() takes too
        ("colour", "its options: .*max_model_len, seed"),
    ],
)
def test_an_unknown_option_is_refused_by_name_with_what_was_meant(option: str, says: str) -> None:
    from llmserve.core.clock import MonotonicClock

    with pytest.raises(TypeError, match=f"no option '{option}'; {says}"):
        create("torch", sink=lambda _: None, clock=MonotonicClock(), **{option: 5})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_model_len": "long"}, "max_model_len"),
        ({"max_model_len": 0}, "within 1 and"),
        ({"threads": -1}, "threads must be within 1 and 4,096, not -1"),
        ({"seed": float("nan")}, "seed takes a whole number, not nan"),
        ({"block_size": None}, "block_size takes int, not None"),
        ({"trust_remote_code": 3}, "trust_remote_code takes bool, not 3"),
        ({"model": 3}, "model takes str [|] None, not 3"),
        ({"dtype": "int3"}, "dtype is one of auto, float32, bfloat16, float16, not 'int3'"),
        ({"quantization": "int4"}, "quantization is one of int8, not 'int4'"),
        ({"omp_wait_policy": "eager"}, "omp_wait_policy"),
        ({"model": "./no/such/folder"}, "no model folder"),
        ({"model": "/no/such/folder"}, "no model folder"),
    ],
)
def test_a_wrong_value_is_refused_by_name(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(wrong)


def test_a_folder_may_be_a_path(tmp_path: Path) -> None:
    assert parse({"model": tmp_path}).model_path == str(tmp_path)
    assert parse({"model": tmp_path}).is_folder
    assert not parse({"model": "owner/name"}).is_folder


def test_without_a_model_it_is_the_bundled_one() -> None:
    assert parse({}).is_folder
    assert parse({}).model_id == "llmserve-tiny"


def test_one_core_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for own, expected in ((1, 1), (2, 1), (8, 7)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=own: set(range(n)))
        assert TorchOptions().thread_count == expected
    assert TorchOptions(threads=3).thread_count == 3


def test_a_containers_share_of_the_cores_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More threads than it may run at once would each wait for one that is held back."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    quota = tmp_path / "cpu.max"
    assert cores(quota) == 64
    for text, expected in (
        ("max 100000\n", 64), ("400000 100000\n", 4), ("150000 100000\n", 1),
        ("20000 100000\n", 1), ("9900000 100000\n", 64), ("nonsense", 64),
    ):
        quota.write_text(text)
        assert cores(quota) == expected


def test_where_a_process_has_no_set_of_cores_the_machines_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr("os.sched_getaffinity")  # as on macOS
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert cores(tmp_path / "none") == 6


def test_kv_bytes_count_the_rounding_of_slabs() -> None:
    assert GEOMETRY.token_bytes == 4 * 2 * 16 * 2
    options = TorchOptions(kv_cache_memory_bytes=256 * 2 * 1000)
    assert kv_capacity(options, GEOMETRY, 512) == 992  # whole blocks of 16


def test_kv_takes_no_more_than_a_quarter_or_what_can_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "free_bytes", lambda _: 256 * 2 * 4 * 1600)
    assert kv_capacity(TorchOptions(), GEOMETRY, 512) == 1600
    assert kv_capacity(TorchOptions(max_num_seqs_ceiling=2), GEOMETRY, 512) == 1024


def test_a_context_that_does_not_fit_is_refused_where_it_was_asked_for() -> None:
    with pytest.raises(ValueError, match="max_model_len=512"):
        kv_capacity(TorchOptions(kv_capacity_tokens=100, max_model_len=512), GEOMETRY, 512)
    assert kv_capacity(TorchOptions(kv_capacity_tokens=100), GEOMETRY, 512) == 96


def test_less_than_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="one block"):
        kv_capacity(TorchOptions(kv_capacity_tokens=15), GEOMETRY, 512)


def test_a_containers_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"memory.max": 1000, "memory.current": 400}
    monkeypatch.setattr(budget, "_cgroup", lambda name: figures[name])
    assert budget.free_bytes(torch.device("cpu")) == 600


def test_no_wait_policy_spins_without_end() -> None:
    spins = [
        int(parse({"omp_wait_policy": policy}).openmp_environment["GOMP_SPINCOUNT"])
        for policy in ("brief", "active")
    ]
    assert 0 < spins[0] < spins[1] < 100_000
    passive = parse({"omp_wait_policy": "passive", "threads": 3}).openmp_environment
    assert passive == {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "passive"}


def test_huge_pages_are_asked_for_beside_a_users_own_tunables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = "glibc.malloc.hugetlb=1"
    for given, expected in (
        ("", {"GLIBC_TUNABLES": ours}),
        ("glibc.malloc.arena_max=1", {"GLIBC_TUNABLES": f"glibc.malloc.arena_max=1:{ours}"}),
        ("glibc.malloc.hugetlb=0", {}),
    ):
        monkeypatch.setenv("GLIBC_TUNABLES", given)
        assert TorchOptions().memory_environment == expected
