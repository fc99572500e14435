"""The real pynvml, over a driver's library that is written here: the names we ask for, what they
return and what they raise are pynvml's own, and only the driver is made up."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import pynvml
import pytest

import llmserve
from llmserve.core.clock import VirtualClock
from llmserve.engines.registry import has_gpu
from llmserve.observe.gpu import DeviceSampler
from llmserve.observe.process_memory import MemoryScales

GIB = 2**30
NOT_TOLD = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value


class Driver:
    """libnvidia-ml of one GPU; pynvml hands it C pointers to fill."""

    def __init__(self, holds: dict[int, int]) -> None:
        self.holds = holds
        self.open = 0

    def nvmlInitWithFlags(self, flags: int) -> int:
        self.open += 1
        return 0

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory._obj.total, memory._obj.used = 80 * GIB, 3 * GIB
        return 0

    def nvmlDeviceGetName(self, handle: Any, name: Any, size: Any) -> int:
        name.value = b"NVIDIA Made Up"
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> int:
        rates._obj.gpu = 40
        return 0

    def nvmlDeviceGetPowerUsage(self, handle: Any, milliwatts: Any) -> int:
        milliwatts._obj.value = 250_000
        return 0

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: Any, celsius: Any) -> int:
        return int(pynvml.NVML_ERROR_NOT_SUPPORTED)


class Driver510(Driver):
    """With a list of processes as pynvml asks for it today."""

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, found: Any) -> int:
        if found is None:
            count._obj.value = len(self.holds)
            return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE if self.holds else 0)
        for place, (pid, held) in enumerate(self.holds.items()):
            found[place].pid, found[place].usedGpuMemory = pid, held
        count._obj.value = len(self.holds)
        return 0


def install(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", driver)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})


def weighed() -> tuple[int | None, int | None]:
    """Of this process, and of the device."""
    scales = MemoryScales()
    try:
        found = scales.weigh(())
        assert found.kernel is not None
        return found.kernel.device, found.device_used
    finally:
        scales.close()


def test_a_drivers_figures_arrive_through_pynvml(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver510({os.getpid(): 2 * GIB, 99_999_999: GIB})
    install(monkeypatch, driver)
    assert has_gpu()
    sampler = DeviceSampler(lambda: (os.getpid(),), VirtualClock())
    (sample,) = sampler.sample()
    assert (sample.kind, sample.name) == ("gpu", "NVIDIA Made Up")
    assert (sample.used_bytes, sample.total_bytes, sample.own_bytes) == (
        3 * GIB, 80 * GIB, 2 * GIB,
    )  # fmt: skip
    assert (sample.utilization, sample.power_w, sample.temperature_c) == (0.4, 250.0, None)
    sampler.close()
    assert weighed() == (2 * GIB, 3 * GIB)
    assert driver.open == 0


@pytest.mark.parametrize(
    "driver",
    [Driver510({1: GIB}), Driver510({os.getpid(): NOT_TOLD}), Driver510({}), Driver({})],
    ids=["pids of another namespace", "a size not told", "no process", "older than 510"],
)
def test_what_a_driver_does_not_tell_of_a_process_is_none(
    monkeypatch: pytest.MonkeyPatch, driver: Driver
) -> None:
    install(monkeypatch, driver)
    (sample,) = DeviceSampler(lambda: (os.getpid(),), VirtualClock()).sample()
    assert (sample.used_bytes, sample.own_bytes) == (3 * GIB, None)
    assert weighed() == (None, 3 * GIB)


def test_pids_and_sizes_come_in_structures_of_pynvmls_own() -> None:
    assert ctypes.sizeof(pynvml.c_nvmlProcessInfo_v3_t) == 24, "a driver fills them by this layout"


def test_a_closed_session_has_given_nvml_back(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver510({os.getpid(): GIB})
    install(monkeypatch, driver)
    with llmserve.serve(engine="simulator") as session:
        until = time.monotonic() + 30
        while not session.stats().devices:
            assert time.monotonic() < until, "the device was never sampled"
            time.sleep(0.01)
        assert session.stats().devices[0].name == "NVIDIA Made Up"
        assert driver.open > 0
    assert driver.open == 0
