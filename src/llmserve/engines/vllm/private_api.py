"""The private names of vLLM that this folder leans on, each with what it is for.

vLLM promises none of them. `moved` says which are not there any more, in words, before an engine
is started on a release that this code was not written for.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any, NamedTuple


class Name(NamedTuple):
    module: str
    path: str
    """Attributes below the module; the last part after "=" is a word in its source. Where there are
    none, a word of the whole module, which is then read and not imported: the kernel has no use
    for what only a worker runs, and it is heavy."""
    why: str


NAMES = (
    Name("vllm.v1.core.sched.scheduler", "Scheduler.schedule", "every step is noted around it"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler.update_from_output", "where a step ends"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler._preempt_request", "evict=True preempts"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler.add_request", "who is new in the line"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler.pause_state", "a paused line is not held"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler=self.max_num_active_reqs",
         "max_num_seqs caps admission by it"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler=self.max_num_running_reqs",
         "the ceiling of max_num_seqs"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler=self.max_num_scheduled_tokens",
         "max_num_batched_tokens is it"),
    Name("vllm.v1.core.sched.scheduler",
         "Scheduler=self.scheduler_config.long_prefill_token_threshold", "the knob of that name"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler=self.prev_step_scheduled_req_ids",
         "an evicted request must leave it"),
    Name("vllm.v1.core.sched.scheduler",
         "Scheduler=if request.num_stale_output_tokens and not request.drop_stale_output",
         "an evicted request does not go on before its last token has come"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler=self.kv_holding_waiting", "the line"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler=self.num_waiting_for_streaming_input",
         "it counts against the cap"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler=kv_connector_stats=connector_stats_payload",
         "the batch tape travels in that dict"),
    Name("vllm.v1.core.sched.async_scheduler", "AsyncScheduler", "asynchronous scheduling"),
    Name("vllm.v1.core.sched.interface", "PauseState.UNPAUSED", "a paused line is not held"),
    Name("vllm.v1.core.sched.request_queue", "SchedulingPolicy.PRIORITY", "whom to evict"),
    Name("vllm.v1.request", "Request=self.is_prefill_chunk", "prefill or decode"),
    Name("vllm.v1.request", "RequestStatus.RUNNING", "who waits"),
    Name("vllm.v1.engine.core", "EngineCore", "live knobs are methods added to it"),
    Name("vllm.v1.engine.core", "EngineCoreProc=getattr(self, method_name)",
         "utility calls reach methods by name"),
    Name("vllm.v1.engine.core_client", "AsyncMPClient.call_utility_async", "carries a knob"),
    Name("vllm.v1.engine.core_client", "AsyncMPClient.get_output_async",
         "each step's record is read from what it returns"),
    Name("vllm.v1.engine.core_client", "BackgroundResources=ctx: zmq.Context", "closed at stop"),
    Name("vllm.v1.engine.input_processor", 'InputProcessor={request.external_req_id}-{random_uuid()'
         ":.8}", "the tape strips that tail from request ids"),
    Name("vllm.v1.metrics.stats", "SchedulerStats=kv_connector_stats: dict[str, Any] | None",
         "the batch tape travels in that dict"),
    Name("vllm.v1.metrics.stats", "SchedulerStats=spec_decoding_stats", "acceptance per step"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM=if logger_ref[0]:",
         "vLLM's own metrics are left out of the kernel"),
    Name("vllm.v1.engine.output_processor", "OutputProcessor=log_stats=self.log_stats",
         "vLLM's own metrics are left out of the kernel"),
    Name("vllm.v1.engine.output_processor", "RequestOutputCollector=self.ready.set()",
         "a request's outputs are taken when it is called"),
    Name("vllm.v1.engine.output_processor", "RequestOutputCollector=self.ready.clear()",
         "a request's outputs are taken behind it"),
    Name("vllm.v1.engine.output_processor", "RequestOutputCollector.get_nowait",
         "takes a request's outputs"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM=q = await self.add_request(",
         "a request is added as vLLM's own generate adds it"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM=q.get_nowait() or await q.get()",
         "its outputs are taken as vLLM's own generate takes them"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.abort", "a request that nobody waits for is ended"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.from_vllm_config", "starts the engine"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.errored", "notices that the engine died"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.pause_generation", "pause"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.sleep", "sleep"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.wake_up", "wake"),
    Name("vllm.v1.engine.exceptions", "EngineDeadError", "the engine died"),
    Name("vllm.exceptions", "VLLMClientError", "a wrong parameter is the client's fault"),
    Name("vllm.entrypoints.launchers.app", "build_app", "vLLM's own API"),
    Name("vllm.entrypoints.launchers.api_server.app_state", "init_app_state", "vLLM's own API"),
    Name("vllm.entrypoints.launchers.cli_args", "make_arg_parser", "vLLM's own API"),
    Name("vllm.tool_parsers", "ToolParserManager.list_registered", "a parser is checked at start"),
    Name("vllm.tool_parsers", "ToolParserManager.import_tool_parser", "a parser of the user's own"),
    Name("vllm.renderers.chat_utils", "validate_chat_template", "a template is checked at start"),
    Name("vllm.renderers.chat_utils", "load_chat_template", "a template of the user's own"),
    Name("vllm.engine.protocol", "EngineClient.generate", "vLLM's own API calls it"),
    Name("vllm.outputs", "RequestOutput.add", "n choices are put together by it"),
    Name("vllm.inputs.engine", "tokens_input", "a prompt of token ids"),
    Name("vllm.v1.worker.gpu_worker", "=def sample_tokens(", "a CPU's seeds are kept around it"),
    Name("vllm.v1.worker.gpu_model_runner",
         "=gen = self.input_batch.generators.get(int(i))",
         "a CPU's generators are not there to be set back"),
    Name("vllm.v1.worker.gpu_input_batch", "=generators=self.generators",
         "a CPU's generators are not there for a draw that is thrown away"),
    Name("vllm.v1.worker.gpu_model_runner", "=self.discard_request_mask.np[",
         "whose draw is thrown away"),
    Name("vllm.config.vllm", "VllmConfig=additional_config", "carries the parent watch"),
)  # fmt: skip


def moved(names: tuple[Name, ...] = NAMES) -> list[str]:
    """One sentence for each name that is not where it was; empty when all is well."""
    return [
        f"{name.module}: {name.path.replace('=', ' no longer says ').strip()} ({name.why})"
        for name in names
        if not _there(name)
    ]


def _there(name: Name) -> bool:
    path, _, word = name.path.partition("=")
    try:
        if not path:
            spec = importlib.util.find_spec(name.module)
            return spec is not None and word in Path(str(spec.origin)).read_text()
        found: Any = importlib.import_module(name.module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, OSError):
        return False
    return not word or word in inspect.getsource(found)
