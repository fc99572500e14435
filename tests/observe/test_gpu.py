"""DeviceSampler: the host for real; NVML's arithmetic on a stand-in for its module, for there is
no GPU where this runs (`gpu` marks the test that wants one)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from llmserve.core.clock import VirtualClock
from llmserve.observe.gpu import DeviceSampler

NO_CGROUP = Path("/nowhere")


class NVMLError(Exception):
    pass


class StandInNVML:
    """What DeviceSampler asks of pynvml, for cards written in the test. None: not supported."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *cards: dict[str, Any], fails: bool = False) -> None:
        self._cards = cards
        self._fails = fails
        self.open = 0

    def nvmlInit(self) -> None:
        if self._fails:
            raise NVMLError("driver not loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self._cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        return self._cards[index]

    def _get(self, card: dict[str, Any], name: str) -> Any:
        if card.get(name) is None:
            raise NVMLError("not supported")
        return card[name]

    def nvmlDeviceGetMemoryInfo(self, card: dict[str, Any]) -> Any:
        used, total = self._get(card, "memory")
        return SimpleNamespace(used=used, total=total)

    def nvmlDeviceGetName(self, card: dict[str, Any]) -> Any:
        return self._get(card, "name")

    def nvmlDeviceGetUtilizationRates(self, card: dict[str, Any]) -> Any:
        return SimpleNamespace(gpu=self._get(card, "percent"))

    def nvmlDeviceGetPowerUsage(self, card: dict[str, Any]) -> Any:
        return self._get(card, "milliwatts")

    def nvmlDeviceGetTemperature(self, card: dict[str, Any], sensor: int) -> Any:
        return self._get(card, "celsius")

    def nvmlDeviceGetComputeRunningProcesses(self, card: dict[str, Any]) -> Any:
        found = self._get(card, "processes")
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in found.items()]


NO_GPU = StandInNVML(fails=True)


def sampler(nvml: Any, *pids: int, cgroup: Path = NO_CGROUP) -> DeviceSampler:
    return DeviceSampler(lambda: pids or (os.getpid(),), VirtualClock(7), nvml=nvml, cgroup=cgroup)


def test_without_a_gpu_the_host_is_measured_and_labelled_so() -> None:
    (sample,) = sampler(NO_GPU).sample()
    assert (sample.kind, sample.t, sample.power_w) == ("host", 7, None)
    assert 0 < sample.used_bytes < sample.total_bytes
    assert sample.own_bytes is not None
    assert 10e6 < sample.own_bytes < sample.total_bytes, "this very process is resident"


def test_the_first_host_sample_has_no_utilization_for_there_was_no_interval() -> None:
    host = sampler(NO_GPU)
    assert host.sample()[0].utilization is None
    again = host.sample()[0].utilization
    assert again is not None
    assert 0 <= again <= 1


def test_the_memory_of_children_counts_as_own() -> None:
    child = "x = bytearray(50_000_000); print(1, flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        together = sampler(NO_GPU, parent.pid).sample()[0].own_bytes
        alone = psutil.Process(parent.pid).memory_info().rss
    assert together is not None
    assert together - alone > 40e6


def test_processes_that_are_gone_make_own_unknown_not_zero() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert sampler(NO_GPU, gone.pid).sample()[0].own_bytes is None


def test_a_containers_limit_is_the_host_that_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 200000\n")
    (sample,) = sampler(NO_GPU, cgroup=tmp_path).sample()
    assert (sample.used_bytes, sample.total_bytes) == (400_000, 1_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert sampler(NO_GPU, cgroup=tmp_path).sample()[0].total_bytes > 1_000_000


def test_a_gpu_is_told_in_bytes_shares_watts_and_degrees() -> None:
    card = {
        "memory": (3, 9), "name": b"H1", "percent": 50, "milliwatts": 70_500, "celsius": 40,
        "processes": {os.getpid(): 2, 1_999_999: 1},
    }  # fmt: skip
    (sample,) = sampler(StandInNVML(card)).sample()
    assert (sample.kind, sample.name, sample.used_bytes, sample.total_bytes) == ("gpu", "H1", 3, 9)
    assert (sample.utilization, sample.power_w, sample.temperature_c) == (0.5, 70.5, 40)
    assert sample.own_bytes == 2


@pytest.mark.parametrize(
    "processes",
    [None, {}, {1_999_999: 5}, {os.getpid(): None}],
    ids=["not supported", "none listed", "only strangers (another pid namespace)", "size hidden"],
)
def test_what_a_gpu_does_not_tell_is_none_never_zero(processes: Any) -> None:
    (sample,) = sampler(StandInNVML({"memory": (3, 9), "processes": processes})).sample()
    assert (sample.own_bytes, sample.utilization, sample.power_w) == (None, None, None)
    assert sample.temperature_c is None


def test_each_gpu_is_sampled_and_nvml_is_given_back_once() -> None:
    nvml = StandInNVML({"memory": (1, 9)}, {"memory": (2, 9)}, {"memory": None})
    gpus = sampler(nvml)
    assert [sample.used_bytes for sample in gpus.sample()] == [1, 2]
    gpus.sample()
    assert nvml.open == 1
    gpus.close()
    gpus.close()
    assert nvml.open == 0


@pytest.mark.gpu
def test_a_real_gpu_is_found_through_nvml() -> None:
    samples = DeviceSampler(lambda: (os.getpid(),), VirtualClock()).sample()
    assert {sample.kind for sample in samples} == {"gpu"}
    assert all(0 < sample.used_bytes <= sample.total_bytes for sample in samples)


def test_a_new_root_counts_at_once_and_a_new_child_some_seconds_later() -> None:
    clock, me = Hands(), os.getpid()
    roots = [me]
    one = DeviceSampler(lambda: roots, clock, nvml=NO_GPU, cgroup=NO_CGROUP)

    def members() -> set[int]:
        one.sample()
        return {process.pid for process in one._family}

    assert me in members()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid not in members()
        clock.t += 21
        assert child.pid in members()
        roots[:] = [child.pid]
        assert members() == {child.pid}


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.t = 0.0

    def now(self) -> float:
        return self.t

    async def sleep_until(self, when: float) -> None:
        raise AssertionError("nobody sleeps by this clock")
