"""Start-up options of the torch engine, with vLLM's names where vLLM has them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_type_hints

import msgspec

from llmserve.core.validation import mistyped, not_one_of, whole
from llmserve.engines.base import no_option
from llmserve.engines.entry import literal_words
from llmserve.engines.limits import ANY_WHOLE, MOST_TOKENS, ceiling
from llmserve.models import bundled_path

SPINS = {"brief": 2000, "active": 20_000}
"""Turns of GNU's OpenMP, which torch brings on Linux: about a tenth of a millisecond and one."""

_BOUNDS = {
    "max_model_len": (1, MOST_TOKENS),
    "seed": ANY_WHOLE,
    "block_size": (1, MOST_TOKENS),
    "kv_cache_memory_bytes": (1, 1 << 50),
    "kv_capacity_tokens": (1, MOST_TOKENS),
    "threads": (1, 4096),
}


class TorchOptions(msgspec.Struct, frozen=True, kw_only=True):
    model: str | None = None
    """Hub id or folder; None for the bundled toy model."""
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on CUDA and, for all but small models, on a CPU that multiplies it; else
    float32."""
    device: str = "auto"
    forward: Literal["auto", "fused", "compact", "general", "plain"] = "auto"
    """auto takes the fastest way that is proven equal at start; fused insists on kernels of our own
    for steps of few rows, compact on joined products, general on transformers' modelling code,
    plain on that with nothing changed in it."""
    quantization: Literal["int8"] | None = None
    """int8: weights of the layers in half the bytes of bfloat16, on a CPU; `%llmserve status` says
    how far this moves the model's logits."""
    max_model_len: int | None = None
    """None for the model's own."""
    seed: int | None = None
    """Draws the seeds of requests that bring none; None for other ones at every start."""
    trust_remote_code: bool = False
    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    """None for a quarter of the memory that is free after loading, or what the ceilings need."""
    kv_capacity_tokens: int | None = None
    """Tokens of KV instead of bytes."""
    max_num_seqs_ceiling: int = 256
    max_num_batched_tokens_ceiling: int = 8192
    enable_prefix_caching: bool = True
    """Prompts that begin as another did copy that part's keys and values."""
    enforce_eager: bool = False
    """Record no CUDA graphs of decode steps. Without a GPU there are none."""
    threads: int | None = None
    """None for all cores but one, at least one; of a container's share where it has one."""
    omp_wait_policy: Literal["brief", "passive", "active"] = "brief"
    """What a thread does between two products: passive sleeps at once, brief spins a little first,
    active spins for a millisecond: the fastest alone, and the slowest beside a busy process."""

    @property
    def model_path(self) -> str:
        """The path or name that transformers loads."""
        return str(bundled_path() if self.model is None else self.model)

    @property
    def is_folder(self) -> bool:
        return Path(self.model_path).is_dir()

    @property
    def model_id(self) -> str:
        return "llmserve-tiny" if self.model is None else self.model

    @property
    def memory_environment(self) -> dict[str, str]:
        """For the process: glibc asks Linux for huge pages, where an administrator lets it. Weights
        are read from end to end for each token, and finding 4 kB pages costs a share of that."""
        kept = os.environ.get("GLIBC_TUNABLES", "")
        if "glibc.malloc.hugetlb" in kept:
            return {}
        return {"GLIBC_TUNABLES": ":".join(filter(None, (kept, "glibc.malloc.hugetlb=1")))}

    @property
    def openmp_environment(self) -> dict[str, str]:
        """For the process: OpenMP reads it when it starts."""
        threads = {"OMP_NUM_THREADS": str(self.thread_count)}
        spins = SPINS.get(self.omp_wait_policy)
        return threads | (
            {"OMP_WAIT_POLICY": "passive"} if spins is None else {"GOMP_SPINCOUNT": str(spins)}
        )

    @property
    def thread_count(self) -> int:
        return self.threads or max(1, cores() - 1)


def cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many this process may keep busy: those it may run on, or a container's share of them."""
    own = getattr(os, "sched_getaffinity", None)  # macOS has none
    count = os.cpu_count() or 1 if own is None else len(own(0))
    try:
        share, period = map(int, quota.read_text().split())
    except (OSError, ValueError):  # no container, or one without a limit
        return count
    return max(1, min(count, share // period))


def _numbers(options: dict[str, object]) -> dict[str, object]:
    """With the numbers among them as Python's own, and within their bounds; else ValueError."""
    read = dict(options)
    for name, (low, high) in _BOUNDS.items():
        if options.get(name) is not None:
            read[name] = whole(name, options[name], low, high)
    for knob in ("max_num_seqs", "max_num_batched_tokens"):
        if (name := f"{knob}_ceiling") in options:
            read[name] = ceiling(knob, options[name])
    return read


def _wrong(options: dict[str, object], said: str) -> ValueError:
    """What the option may be, in place of msgspec's own words."""
    name = said.rpartition("$.")[2].rstrip("`")
    if words := literal_words(get_type_hints(TorchOptions).get(name)):
        return not_one_of(name, options[name], words)
    kind = said.partition("Expected `")[2].partition("`")[0].replace("null", "None")
    return mistyped(name, kind, options[name])


def parse(options: dict[str, object]) -> TorchOptions:
    """TypeError names an unknown option, ValueError a wrong value."""
    valid = [field.name for field in msgspec.structs.fields(TorchOptions)]
    unknown = [name for name in options if name not in valid]
    if unknown:
        raise no_option("torch", unknown[0], valid)
    model = options.get("model")
    if isinstance(model, os.PathLike):
        options = {**options, "model": os.fspath(model)}
    try:
        parsed = msgspec.convert(_numbers(options), TorchOptions)
    except msgspec.ValidationError as error:
        raise _wrong(options, str(error)) from None
    path = parsed.model_path
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        folder = Path(path).expanduser().resolve()
        if not folder.is_dir():
            raise ValueError(f"there is no model folder {path!r}")
        if parsed.model is not None:
            parsed = msgspec.structs.replace(parsed, model=str(folder))
    return parsed
