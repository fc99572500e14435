"""The private names of vLLM that live knobs and the tape need. A failure says which one moved."""

from __future__ import annotations

import pytest
import vllm

from llmserve.engines.vllm import SUPPORTED
from llmserve.engines.vllm.contract import NAMES, Name, moved


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"{name.module}:{name.path}")
def test_a_private_name_of_vllm_is_where_it_was(name: Name) -> None:
    assert moved((name,)) == []


def test_the_installed_release_is_the_one_this_is_written_for() -> None:
    assert vllm.__version__.startswith(f"{SUPPORTED}.")


def test_a_moved_name_is_told_with_what_it_was_for() -> None:
    gone = Name("vllm.v1.core.sched.scheduler", "Scheduler.reschedule", "to try again")
    silent = Name("vllm.v1.core.sched.scheduler", "Scheduler=self.max_num_foo", "to cap foo")
    assert moved((gone, silent)) == [
        "vllm.v1.core.sched.scheduler: Scheduler.reschedule (to try again)",
        "vllm.v1.core.sched.scheduler: Scheduler no longer says self.max_num_foo (to cap foo)",
    ]
