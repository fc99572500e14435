"""What holds for all tests: those that want a GPU are for machines that have one."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from llmserve.engines.registry import has_gpu
from llmserve.engines.torch import cpu_isa
from support.examples import IN_CI, LONG

# before torch and numba are imported: `LLMSERVE_CPU_ISA=avx2 make unit` is a machine with no more
os.environ.update(cpu_isa.environment(cpu_isa.limit()))

# a shell starts what it puts in the background with interrupts ignored, and so would all tests of
# them and the processes that they start
signal.signal(signal.SIGINT, signal.default_int_handler)

# how long an example takes to draw or to try tells of the machine
settings.register_profile(
    "tests", max_examples=IN_CI, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", settings.get_profile("tests"), max_examples=LONG)
settings.load_profile("tests")  # unless `--hypothesis-profile long` is said

pytest_plugins = ("support.shared_vllm", "support.shells")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting and not has_gpu():
        config.hook.pytest_deselected(items=wanting)
        items[:] = [item for item in items if item not in wanting]
