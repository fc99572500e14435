"""The private names of vLLM that live knobs and the tape need. A failure says which one moved."""

from __future__ import annotations

import subprocess
import sys

import pytest
import vllm

from llmserve.engines.vllm import SUPPORTED
from llmserve.engines.vllm.private_api import NAMES, Name, moved


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"{name.module}:{name.path}")
def test_a_private_name_of_vllm_is_where_it_was(name: Name) -> None:
    assert moved((name,)) == []


def test_the_installed_release_is_the_one_this_is_written_for() -> None:
    assert vllm.__version__.startswith(f"{SUPPORTED}.")


def test_a_moved_name_is_told_with_what_it_was_for() -> None:
    gone = Name("vllm.v1.core.sched.scheduler", "Scheduler.reschedule", "to try again")
    silent = Name("vllm.v1.core.sched.scheduler", "Scheduler=self.max_num_foo", "to cap foo")
    unread = Name("vllm.v1.worker.gpu_worker", "=def sample_foos(", "to draw foos")
    absent = Name("vllm.v1.worker.foo_worker", "=def sample_tokens(", "to draw")
    assert moved((gone, silent, unread, absent)) == [
        "vllm.v1.core.sched.scheduler: Scheduler.reschedule (to try again)",
        "vllm.v1.core.sched.scheduler: Scheduler no longer says self.max_num_foo (to cap foo)",
        "vllm.v1.worker.gpu_worker: no longer says def sample_foos( (to draw foos)",
        "vllm.v1.worker.foo_worker: no longer says def sample_tokens( (to draw)",
    ]


def test_the_kernel_imports_nothing_of_a_worker_to_look_at_its_names() -> None:
    """It would take memory, and torch would say into the cell that there is no triton."""
    look = (
        "import sys; from llmserve.engines.vllm.private_api import moved; assert moved() == []; "
        "print(sorted(m for m in sys.modules if m.startswith('vllm.v1.worker.gpu')))"
    )
    told = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"
    assert "triton" not in told.stderr
