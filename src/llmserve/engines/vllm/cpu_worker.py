"""What vLLM's worker process imports on a CPU: its own worker, whom a seed does not end.

vLLM draws a token for a prompt's every chunk, throws it away and sets the request's generator back.
A CPU's generator cannot be set back: the attempt ended the engine, and all requests with it. Here
the generator takes no part in a draw that is thrown away, so that a seed says the same in any
number of chunks.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


class SeedWorker(CPUWorker):  # type: ignore[misc]  # vllm is not there for the checker
    def sample_tokens(self, grammar_output: Any) -> Any:
        batch = self.model_runner.input_batch
        thrown_away = self.model_runner.discard_request_mask.np[: batch.num_reqs].nonzero()[0]
        generators: dict[int, Any] = batch.generators
        apart = {int(row): generators.pop(row) for row in thrown_away if row in generators}
        try:
            return super().sample_tokens(grammar_output)
        finally:
            generators.update(apart)
