"""Starting vLLM: the module found, the AsyncLLM made in a thread of its own, its facts, and what a
failure says."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import psutil

from llmserve.core.validation import meant, shown
from llmserve.engines.base import EngineError, EngineInfo
from llmserve.engines.process.threads import waited_for
from llmserve.engines.vllm import INSTALL, READ_ON, RUN_ON, SUPPORTED
from llmserve.engines.vllm.options import VllmOptions
from llmserve.engines.vllm.parent_watch import Watch
from llmserve.engines.vllm.process_files import Launch

SCHEDULERS = "llmserve.engines.vllm.live_scheduler"
UNSUPPORTED = {
    "batching": "vLLM batches continuously and in no other way",
    "batch_window_ms": "there is no closed batch in vLLM to wait for",
    "min_decode_slots": "vLLM's scheduler keeps no slots for decodes",
    "stream_interval_ms": "vLLM's own API writes its streams, by its start option stream_interval",
}


def create(options: VllmOptions, launch: Launch) -> Any:
    """An AsyncLLM whose engine process is ready; takes a minute, in a thread of its own."""
    from vllm.config.logging import LoggingConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    args = dict(options.engine_args)
    args.setdefault("served_model_name", options.model_id)
    if "VLLM_LOGGING_CONFIG_PATH" not in os.environ:
        quiet = LoggingConfig(pylogging_config_file=str(launch.logging_config()))
        args.setdefault("logging_config", quiet)
    extra = {**(args.pop("additional_config", None) or {}), "llmserve": Watch(os.getpid())}
    check_api(options.api_args)
    with launch.surroundings():
        try:
            config = AsyncEngineArgs(
                **args, **options.ceilings, additional_config=extra
            ).create_engine_config(UsageContext.ENGINE_CONTEXT)
        except Exception as error:
            raise OptionRefused(refusal(error, args)) from error
        scheduler = config.scheduler_config
        kind = "LiveAsyncScheduler" if scheduler.async_scheduling else "LiveScheduler"
        scheduler.scheduler_cls = f"{SCHEDULERS}.{kind}"
        if launch.given_up:
            raise EngineError("the start was given up")
        try:
            llm = AsyncLLM.from_vllm_config(config)
        except Exception as error:
            close_sockets(error)
            raise
    if launch.given_up:
        llm.shutdown(timeout=0)
        raise EngineError("the start was given up")
    return llm


class OptionRefused(EngineError):
    """Before any process was started: there are no last words of an engine to show."""


def check_api(api_args: Mapping[str, Any]) -> None:
    """What vLLM would say of its application's options only at the first request for it. A plugin
    of the user's is imported here, which registers its parser."""
    from vllm.renderers.chat_utils import validate_chat_template
    from vllm.tool_parsers import ToolParserManager

    plugin = api_args.get("tool_parser_plugin")
    try:
        if plugin:
            ToolParserManager.import_tool_parser(plugin)
        validate_chat_template(api_args.get("chat_template"))
    except Exception as error:
        raise OptionRefused(f"it refuses an option: {error}") from error
    known, parser = ToolParserManager.list_registered(), api_args.get("tool_call_parser")
    if parser is not None and parser not in known:
        if plugin:  # vLLM only logs what is wrong with it
            raise OptionRefused(f"tool_call_parser: {plugin} does not import, or has no {parser!r}")
        hint = meant(parser, known, called="there are")
        raise OptionRefused(f"tool_call_parser: there is no {shown(parser)}{hint}")
    if api_args.get("enable_auto_tool_choice") and parser is None:
        missing = "enable_auto_tool_choice needs a tool_call_parser"
        raise OptionRefused(f"{missing}: one of {', '.join(known)}")


def refusal(error: Exception, args: Mapping[str, Any]) -> str:
    """Which option is wrong and why: of pydantic's report what concerns who wrote the option."""
    report = getattr(error, "errors", None)
    if not callable(report):
        return str(error).strip() or repr(error)
    lines: dict[str, str] = {}  # one for each option: a union complains once for each member
    for one in report(include_url=False):
        said = str(one["msg"]).removeprefix("Value error, ").strip()
        name = str(one["loc"][0]) if one["loc"] else ""
        where = name if name in args else f"{name} ({getattr(error, 'title', 'vLLM')})"
        lines.setdefault(name, f"{where}: {said}, not {shown(one['input'])}" if name else said)
    return "\n".join(lines.values())


def close_sockets(error: Exception) -> None:
    """Of a client that failed to be made, which vLLM leaves to the collector: nobody holds it but
    the frames that the error went through."""
    trace = error.__traceback__
    while trace is not None:
        made = getattr(trace.tb_frame.f_locals.get("self"), "resources", None)
        if (context := getattr(made, "ctx", None)) is not None and not context.closed:
            closing = threading.Thread(target=context.destroy, args=(0,), daemon=True)
            closing.start()
            closing.join(2)
        trace = trace.tb_next


def forget_own_metrics(llm: Any) -> None:
    """The kernel's half of vLLM's statistics: nobody reads them here, where `observe` keeps its own
    of the same events, and they took a tenth of the kernel's time for each token. The engine's
    half goes on: the batch tape travels in it."""
    llm.log_stats = llm.output_processor.log_stats = False
    llm.logger_manager = None


def describe(
    options: VllmOptions,
    config: Any,
    ceilings: dict[str, int],
    family: list[psutil.Process],
    *,
    chat: bool,
) -> EngineInfo:
    import vllm

    speculative = config.speculative_config
    return EngineInfo(
        engine="vllm",
        model_id=options.model_id,
        max_model_len=config.model_config.max_model_len,
        kv_capacity_tokens=config.cache_config.kv_cache_size_tokens or 0,
        block_size=config.cache_config.block_size,
        vocab_size=config.model_config.get_vocab_size(),
        ceilings=ceilings,
        unsupported=UNSUPPORTED,
        device=config.device_config.device_type,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        pids=tuple(process.pid for process in family),
        details={
            "vllm": vllm.__version__,
            "scheduling": "async" if config.scheduler_config.async_scheduling else "sync",
            "scheduling_policy": config.scheduler_config.policy,
            "prefix caching": str(config.cache_config.enable_prefix_caching),
            "speculation": "off" if speculative is None else str(speculative.method),
            "chat template": "yes" if chat else "none",
        },
    )


def import_vllm() -> tuple[type, bool]:
    """AsyncEngineArgs and whether vLLM is to run on a CPU; EngineError where there is no vLLM.

    An interrupt ends the waiting and not the import: torch that was imported by half is imported
    by no second attempt.
    """
    try:
        found, on_cpu = waited_for(_import)
    except ImportError as error:
        raise EngineError(f"vLLM does not import ({error}). To install it: {INSTALL}") from error
    vllm_log = logging.getLogger("vllm")
    for handler in [one for one in vllm_log.handlers if one.name == "vllm"]:
        vllm_log.removeHandler(handler)  # it prints, from whatever thread, into whatever cell
    vllm_log.addHandler(logging.NullHandler())
    return found, on_cpu


def _import() -> tuple[type, bool]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    return AsyncEngineArgs, bool(current_platform.is_cpu())


def release_warning(version: str) -> str | None:
    """One line on a release that the tests have not run on; None for one that they have."""
    series = ".".join(version.split(".")[:2])
    if series == RUN_ON:
        return None
    if series in READ_ON:
        said = f"its private names were read and are in place; llmserve has run on {RUN_ON} alone"
        return f"vLLM {version} has not been run with llmserve: {said}"
    return (
        f"vLLM {version} is not supported (supported: {', '.join(SUPPORTED)}): llmserve checks "
        "that the private names it uses are there, and nothing else"
    )


def warn_of_release() -> None:
    import vllm

    if (said := release_warning(vllm.__version__)) is not None:
        warnings.warn(said, stacklevel=4)  # of the engine's maker, of the registry, of its caller


def not_ours(lost: list[str]) -> str:
    import vllm

    listed = "\n".join(f"- {one}" for one in lost)
    return (
        f"vLLM {vllm.__version__} has moved private names that live knobs and the batch tape need; "
        f"llmserve supports vLLM {' and '.join(SUPPORTED)} (pip install 'vllm=={RUN_ON}.*'):\n"
        f"{listed}"
    )


def start_failure(error: Exception, words: str) -> str:
    """Phrase a failed start: where vLLM's message only points "above", the log is quoted."""
    said = str(error).strip() or repr(error)
    if isinstance(error, OptionRefused) or not words:
        return f"vLLM did not start: {said}"
    if "root cause above" in said:
        return f"vLLM did not start. What its processes said, the first first:\n{words}"
    return f"vLLM did not start: {said}\nThe engine's last lines:\n{words}"
