"""The private names of vLLM that this folder uses, each with what it is for.

vLLM promises none of them. `lost` says which are not there any more, in words, before an engine is
started. It reads vLLM's source: an installed one by default, or a wheel (`contract_check.py`).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

from llmserve.engines.vllm.source_names import Definition, SourceTree


class Name(NamedTuple):
    module: str
    path: str
    """A path below the module, "Class.method". After it, in parentheses, parameters that a call of
    ours gives; or, after "=", a word in its source. With "" before "=", the whole module's."""
    why: str
    later: str = ""
    """The module that holds it in later releases, where it moved within the supported ones."""

    @property
    def parts(self) -> tuple[str, frozenset[str], str]:
        """The path alone, the parameters, the word."""
        path, _, word = self.path.partition("=")
        found = re.fullmatch(r"([\w.]*)(?:\((.*)\))?", path)
        if found is None:
            raise ValueError(
                f"{self.path!r} is no path: Class.method, Class.method(a, b), Class=word"
            )
        return found[1], frozenset(re.findall(r"\w+", found[2] or "")), word


class Finding(NamedTuple):
    """Where a name is, or what is missing of it."""

    name: Name
    at: Definition | None
    lack: str = ""
    moved: bool = False
    """It is in the name's `later` module."""


ARG_PARSER = Name(
    "vllm.entrypoints.launchers.cli_args", "make_arg_parser", "vLLM's own API",
    later="vllm.entrypoints.common.cli_args",
)  # fmt: skip

NAMES = (
    Name("vllm.v1.core.sched.scheduler", "Scheduler.schedule(throttle_prefills)",
         "every step is noted around it"),
    Name("vllm.v1.core.sched.scheduler",
         "Scheduler.update_from_output(scheduler_output, model_runner_output)",
         "where a step ends"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler._preempt_request(request, timestamp)",
         "evict=True preempts"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler.add_request(request)",
         "which requests are new in the queue"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler.pause_state",
         "a paused queue has no wait reason"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler=self.requests: dict[str, Request]",
         "a request by its id"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler=self.running: list[Request]",
         "which requests run"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler=self.waiting = create_request_queue(",
         "the queue"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler=self.policy = SchedulingPolicy(",
         "which request to evict"),
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
    Name("vllm.v1.core.sched.scheduler", "Scheduler=self.kv_holding_waiting", "the queue"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler=self.num_waiting_for_streaming_input",
         "it counts against the cap"),
    Name("vllm.v1.core.sched.scheduler", "Scheduler=kv_connector_stats=connector_stats_payload",
         "the batch tape travels in that dict"),
    Name("vllm.v1.core.sched.async_scheduler", "AsyncScheduler", "asynchronous scheduling"),
    Name("vllm.v1.core.sched.interface", "PauseState.UNPAUSED",
         "a paused queue has no wait reason"),
    Name("vllm.v1.core.sched.request_queue", "SchedulingPolicy.PRIORITY", "which request to evict"),
    Name("vllm.v1.core.sched.request_queue", "RequestQueue.peek_request",
         "the queue's head has the wait reason of all"),
    Name("vllm.v1.core.sched.output", "SchedulerOutput.scheduled_new_reqs", "a step's rows"),
    Name("vllm.v1.core.sched.output", "SchedulerOutput.scheduled_cached_reqs", "a step's rows"),
    Name("vllm.v1.core.sched.output", "SchedulerOutput.num_scheduled_tokens", "a step's rows"),
    Name("vllm.v1.core.sched.output", "SchedulerOutput.total_num_scheduled_tokens",
         "the wait reason token_budget"),
    Name("vllm.v1.core.sched.output", "SchedulerOutput.preempted_req_ids", "preempted requests"),
    Name("vllm.v1.core.sched.output", "CachedRequestData.resumed_req_ids", "a step's rows"),
    Name("vllm.v1.request", "Request=self.is_prefill_chunk", "prefill or decode"),
    Name("vllm.v1.request", "RequestStatus.RUNNING", "which requests wait"),
    Name("vllm.v1.engine.core", "EngineCore", "live knobs are methods added to it"),
    Name("vllm.v1.engine.core", "EngineCoreProc=getattr(self, method_name)",
         "utility calls reach methods by name"),
    Name("vllm.v1.engine.core_client", "AsyncMPClient.call_utility_async(method)",
         "carries a knob"),
    Name("vllm.v1.engine.core_client", "AsyncMPClient.get_output_async",
         "each step's record is read from what it returns"),
    Name("vllm.v1.engine.core_client", "BackgroundResources=ctx: zmq.Context", "closed at stop"),
    Name("vllm.v1.engine.input_processor", 'InputProcessor={request.external_req_id}-{random_uuid()'
         ":.8}", "the tape strips that tail from request ids"),
    Name("vllm.v1.metrics.stats", "SchedulerStats=kv_connector_stats: dict[str, Any] | None",
         "the batch tape travels in that dict"),
    Name("vllm.v1.metrics.stats", "SchedulerStats.spec_decoding_stats", "acceptance per step"),
    Name("vllm.v1.metrics.stats", "SchedulerStats.num_running_reqs", "a step's record"),
    Name("vllm.v1.metrics.stats", "SchedulerStats.num_waiting_reqs", "a step's record"),
    Name("vllm.v1.metrics.stats", "SchedulerStats.num_skipped_waiting_reqs", "a step's record"),
    Name("vllm.v1.metrics.stats", "SchedulerStats.kv_cache_usage", "a step's record"),
    Name("vllm.v1.metrics.stats", "SchedulerStats.prefix_cache_stats", "a step's record"),
    Name("vllm.v1.metrics.stats", "PrefixCacheStats.hits", "a step's cached tokens"),
    Name("vllm.v1.metrics.stats", "PrefixCacheStats.preempted_hits", "a step's cached tokens"),
    Name("vllm.v1.spec_decode.metrics", "SpecDecodingStats.num_draft_tokens", "acceptance"),
    Name("vllm.v1.spec_decode.metrics", "SpecDecodingStats.num_accepted_tokens", "acceptance"),
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
    Name("vllm.v1.engine.async_llm", "AsyncLLM.add_request(request_id, prompt, params, priority)",
         "a request reaches the engine"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.abort(request_id)",
         "a request that nobody waits for is ended"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.from_vllm_config(vllm_config)", "starts the engine"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.shutdown(timeout)", "stops the engine"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.errored", "notices that the engine died"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.pause_generation(mode, clear_cache)", "pause"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.resume_generation", "resume"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.reset_prefix_cache", "forgets cached prefixes"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.sleep(level, mode)", "sleep"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.wake_up(tags)", "wake"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.collective_rpc(method)",
         "loads weights again after sleep level 2"),
    Name("vllm.v1.engine.async_llm", "AsyncLLM.get_tokenizer", "prompts are counted"),
    Name("vllm.v1.engine.exceptions", "EngineDeadError", "the engine died"),
    Name("vllm.exceptions", "VLLMClientError", "a wrong parameter is the client's fault"),
    Name("vllm.engine.arg_utils", "AsyncEngineArgs.create_engine_config(usage_context)",
         "options are vLLM's own"),
    Name("vllm.config.logging", "LoggingConfig.pylogging_config_file",
         "the log goes to a file, not to a cell"),
    Name("vllm.logging_utils", "NewLineFormatter", "the log's lines"),
    Name("vllm.config.scheduler", "SchedulerConfig.scheduler_cls", "puts the live scheduler in"),
    Name("vllm.config.cache", "CacheConfig.kv_cache_size_tokens", "the KV capacity"),
    Name("vllm.usage.usage_lib", "UsageContext.ENGINE_CONTEXT", "starts the engine"),
    Name("vllm.platforms", "current_platform", "a CPU or a GPU"),
    Name("vllm.sampling_params", "SamplingParams.skip_clone", "sampling parameters"),
    Name("vllm.sampling_params", "RequestOutputKind.DELTA", "outputs are what is new"),
    Name("vllm.sampling_params", "StructuredOutputsParams", "json, regex, choice and grammar"),
    Name("vllm", "SamplingParams", "sampling parameters"),
    Name("vllm.utils.argparse_utils", "FlexibleArgumentParser", "vLLM's own API"),
    Name("vllm.entrypoints.launchers.app", "build_app(args, supported_tasks, model_config)",
         "vLLM's own API"),
    Name("vllm.entrypoints.launchers.api_server.app_state",
         "init_app_state(engine_client, state, args, supported_tasks)", "vLLM's own API"),
    ARG_PARSER,
    Name("vllm.tool_parsers", "ToolParserManager.list_registered", "a parser is checked at start"),
    Name("vllm.tool_parsers", "ToolParserManager.import_tool_parser(plugin_path)",
         "a parser of the user's own"),
    Name("vllm.renderers.chat_utils", "validate_chat_template(chat_template)",
         "a template is checked at start"),
    Name("vllm.renderers.chat_utils", "load_chat_template(chat_template)",
         "a template of the user's own"),
    Name("vllm.engine.protocol", "EngineClient.generate(prompt, sampling_params, request_id)",
         "vLLM's own API calls it"),
    Name("vllm.engine.protocol", "EngineClient.abort(request_id)", "vLLM's own API calls it"),
    Name("vllm.outputs", "RequestOutput.add(next_output, aggregate)",
         "n choices are put together by it"),
    Name("vllm.inputs.engine", "tokens_input(prompt_token_ids)", "a prompt of token ids"),
    Name("vllm.v1.worker.cpu_worker", "CPUWorker", "a CPU's seeds are kept around it"),
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


def look_up(name: Name, tree: SourceTree) -> Finding:
    path, parameters, word = name.parts
    for module in (name.module, name.later):
        at = tree.find(module, path) if module else None
        if at is None:
            continue
        if untaken := sorted(parameters - at.parameters):
            return Finding(name, at, f"{path} takes no {', '.join(untaken)} any more")
        if word not in at.text:
            return Finding(name, at, f"{path or 'it'} no longer says {word}")
        return Finding(name, at, moved=module == name.later)
    return Finding(name, None, f"no {path}" if path else "no such module")


def lost(tree: SourceTree | None = None, names: tuple[Name, ...] = NAMES) -> list[str]:
    """One sentence for each name that is not where it was; empty when all is well."""
    source = tree or installed()
    findings = [look_up(name, source) for name in names]
    return [f"{one.name.module}: {one.lack} ({one.name.why})" for one in findings if one.lack]


def installed() -> SourceTree:
    """Find the installed vLLM that would be imported."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("vLLM is not installed", name="vllm")
    return SourceTree(Path(spec.origin).parents[1])


def imported(name: Name) -> Any:
    """The object itself, from the module that this release has it in."""
    try:
        module = importlib.import_module(name.module)
    except ModuleNotFoundError as error:
        if not name.later or error.name is None or not name.module.startswith(error.name):
            raise
        module = importlib.import_module(name.later)
    found: Any = module
    for part in name.parts[0].split("."):
        found = getattr(found, part)
    return found
