"""The other engine with a child process, where vLLM is installed and the loop thus is uvloop's."""

from __future__ import annotations

import llmserve


def test_the_torch_engine_serves_where_vllm_is_installed() -> None:
    with llmserve.serve(engine="torch", dtype="float32", threads=1) as session:
        assert type(session.runtime.loop).__module__.startswith("uvloop")
        assert session.generate("one", max_tokens=3).outcome.usage.completion_tokens == 3
