"""Start-up options: vLLM's own, under their own names, and three of ours."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from llmserve.core.validation import plain, unlike, whole
from llmserve.engines.base import no_option
from llmserve.engines.limits import ANY_WHOLE, ceiling
from llmserve.engines.vllm.api_server import API_OPTIONS
from llmserve.models import bundled_path

OURS = ("max_num_seqs_ceiling", "max_num_batched_tokens_ceiling")
CPU_WORKER = "llmserve.engines.vllm.cpu_worker.SeedWorker"
CPU_KV_BYTES = 1 << 30
"""Where neither an option nor VLLM_CPU_KVCACHE_SPACE says how much: vLLM itself would take half of
the machine's memory."""

TIGHT_JSON = {"backend": "xgrammar", "disable_any_whitespace": True}

KNOBS = {
    "max_num_seqs": "it is a live knob; its ceiling is max_num_seqs_ceiling",
    "max_num_batched_tokens": "it is a live knob; its ceiling is max_num_batched_tokens_ceiling",
    "long_prefill_token_threshold": "it is a live knob",
    "max_num_active_seqs": "the live knob max_num_seqs does that",
    "scheduler_cls": "live knobs and the batch tape need this project's own",
    "disable_log_stats": "the batch tape travels with the statistics",
}
"""vLLM's options that are not start-up options here, each with the reason."""

DICTS = ("additional_config", "speculative_config")
"""What vLLM itself does not check before it uses them as such."""


@dataclasses.dataclass(frozen=True, slots=True)
class VllmOptions:
    """`engine_args` go to AsyncEngineArgs as they are."""

    engine_args: dict[str, Any]
    api_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Go to vLLM's own HTTP application."""
    max_num_seqs_ceiling: int = 256
    max_num_batched_tokens_ceiling: int = 8192

    @property
    def model_id(self) -> str:
        name = self.engine_args.get("served_model_name")
        if isinstance(name, list | tuple):
            name = name[0]
        if name:
            return str(name)
        bundled = self.engine_args["model"] == str(bundled_path())
        return "llmserve-tiny" if bundled else str(self.engine_args["model"])

    @property
    def ceilings(self) -> dict[str, int]:
        return {
            "max_num_seqs": self.max_num_seqs_ceiling,
            "max_num_batched_tokens": self.max_num_batched_tokens_ceiling,
        }


def parse(options: Mapping[str, object], known: set[str], *, on_cpu: bool) -> VllmOptions:
    """`known`: the fields of vLLM's AsyncEngineArgs. TypeError names an unknown option,
    ValueError a wrong value of ours; vLLM checks its own at start."""
    args = {name: plain(value) for name, value in options.items()}
    for name in args:
        if name in KNOBS:
            raise TypeError(f"{name} is no start-up option here: {KNOBS[name]}")
        if name not in known and name not in OURS:
            raise no_option("vllm", name, [*sorted(known), *OURS])
        if type(args[name]) is int:  # of a larger one vLLM's check fails, or none is made
            whole(name, args[name], *ANY_WHOLE)
    api_args = {name: args.pop(name) for name in list(args) if name in API_OPTIONS}
    ours = {
        name: ceiling(name.removesuffix("_ceiling"), args.pop(name))
        for name in OURS
        if name in args
    }
    if args.get("model") is None:
        args["model"] = str(bundled_path())
        # so small a model would fill JSON with blanks up to its last token
        args.setdefault("structured_outputs_config", dict(TIGHT_JSON))
    elif isinstance(args["model"], os.PathLike):
        args["model"] = os.fspath(args["model"])
    elif not isinstance(args["model"], str):
        raise unlike("model", "a name or a folder", args["model"])
    for name in DICTS:
        if not isinstance(args.get(name, {}), dict | None):
            raise unlike(name, "a dict of vLLM's own options", args[name])
    if on_cpu:
        args.setdefault("enforce_eager", True)  # compiling takes a minute and gains little there
        args.setdefault("worker_cls", CPU_WORKER)
        if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            args.setdefault("kv_cache_memory_bytes", CPU_KV_BYTES)
    return VllmOptions(args, api_args, **ours)
