"""Proofs kept between starts: which form of a model was proven and taken, and by what logits.

A proof holds for one state of all that it depends on: the model's files, this package's, the
libraries, the CPU and the options. That state is its file's name, so another state finds none. It
holds the logits of transformers' own code too: a start that takes a kept proof compares with them
again, and only transformers is spared. What is damaged or not the user's alone is not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from stat import S_ISREG
from typing import Literal

import msgspec
import torch
from torch import Tensor

import llmserve
from llmserve.engines.torch.model.direct_weights import NetworkFacts
from llmserve.engines.torch.model.verify import LENGTHS
from llmserve.engines.torch.options import TorchOptions
from llmserve.engines.torch.user_cache import cache_folder, users_alone

PACKAGE = Path(__file__).parents[1]
"""What decides how a step is computed."""
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "numba", "llvmlite")
BESIDE = frozenset({
    "model", "revision", "seed", "block_size", "kv_cache_memory_bytes", "kv_capacity_tokens",
    "max_num_seqs_ceiling", "max_num_batched_tokens_ceiling", "enable_prefix_caching",
})  # fmt: skip
"""Options that no form of a forward pass depends on, but for the model: its files are read."""
SETTINGS = (
    "ATEN_", "BLAS_", "DNNL_", "GOMP_", "KMP_", "LLMSERVE_CPU_ISA", "MKL_", "NUMBA_", "OMP_",
    "ONEDNN_", "PYTORCH_", "TORCH_",
)  # fmt: skip
WHOLE_BYTES = 64 << 20
"""A file up to this is read whole; of a larger one size, time and samples are its content."""
SAMPLES, SAMPLE_BYTES = 64, 1 << 16
MOST_KEPT = 16
"""Proofs of other states and models, the latest used."""
NAME = re.compile(r"[0-9a-f]{40}\.proof")

ROWS = (9, 1)
"""Of the logits of each checked sequence, the last ones: all that a check compares."""


class FormProof(msgspec.Struct, frozen=True):
    facts: NetworkFacts
    form: Literal["fused", "compact"]
    path: str
    """How it computes, in words."""
    wide: int | None
    """From how many rows on products are in float32."""
    most_few: int | None
    """Rows from which on kernels of our own leave a step to torch; None for never."""
    took_s: float
    logits: tuple[bytes, ...]
    """By transformers' own code, in float32."""

    def expected(self) -> list[Tensor]:
        """ValueError where the logits are not of the shape that they must have."""
        found, width = [], self.facts.vocab_size
        for rows, raw in zip(ROWS, self.logits, strict=True):
            if len(raw) != 4 * rows * width:
                raise ValueError(f"logits of {len(raw)} bytes are not {rows} rows of {width}")
            tensor = torch.frombuffer(bytearray(raw), dtype=torch.float32)
            found.append(tensor.reshape(rows, width))
        return found


def compared(logits: list[Tensor]) -> tuple[bytes, ...]:
    """The rows that checks compare, as a proof keeps them."""
    assert len(logits) == len(LENGTHS) == len(ROWS)
    kept = (its[-rows:].cpu().contiguous() for rows, its in zip(ROWS, logits, strict=True))
    return tuple(one.numpy().tobytes() for one in kept)


class ProofStore:
    """The one proof of a state: `find`, `keep`, `forget`."""

    def __init__(self, folder: Path, state: str) -> None:
        self._file = folder / f"{state}.proof"

    @classmethod
    def of(cls, model: Path, options: TorchOptions) -> ProofStore | None:
        """None where there is no safe folder, or the model's files cannot be read."""
        folder = cache_folder("proofs")
        try:
            return None if folder is None else cls(folder, state_of(model, options))
        except OSError:
            return None

    def find(self) -> FormProof | None:
        """None where there is none, or one that is damaged or might be another user's."""
        try:
            raw = _read_own(self._file)
            if raw is None or hashlib.sha256(raw[32:]).digest() != raw[:32]:
                return None
            found = msgspec.msgpack.decode(raw[32:], type=FormProof)
            found.expected()
            os.utime(self._file)
        except (OSError, ValueError, msgspec.DecodeError):
            return None
        return found

    def keep(self, proof: FormProof) -> bool:
        """Whether it could be kept. A process that reads meanwhile finds the old one or this."""
        body = msgspec.msgpack.encode(proof)
        try:
            handle, path = tempfile.mkstemp(dir=self._file.parent, suffix=".new")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(body).digest() + body)
                Path(path).replace(self._file)
            except OSError:
                Path(path).unlink(missing_ok=True)
                raise
            _forget_old(self._file)
        except OSError:
            return False
        return True

    def forget(self) -> None:
        with contextlib.suppress(OSError):
            self._file.unlink()


def _read_own(path: Path) -> bytes | None:
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        return file.read() if S_ISREG(found.st_mode) and users_alone(found) else None


def _forget_old(current: Path) -> None:
    others = [
        (one.stat().st_mtime, one)
        for one in current.parent.iterdir()
        if NAME.fullmatch(one.name) and one != current
    ]
    for _, one in sorted(others, reverse=True)[MOST_KEPT:]:
        one.unlink(missing_ok=True)


def state_of(model: Path, options: TorchOptions) -> str:
    """All that a proof depends on, in a name."""
    whole = hashlib.sha256()
    for part in _parts(model, options):
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()[:40]


def _parts(model: Path, options: TorchOptions) -> Iterator[str | bytes]:
    yield from (llmserve.__version__, sys.version, platform.platform(), cpu())
    for library in LIBRARIES:
        yield f"{library} {version_of(library)}"
    yield f"{torch.__version__} {torch.version.git_version}"
    yield torch.backends.cpu.get_cpu_capability()
    for name, value in sorted(os.environ.items()):
        if name.startswith(SETTINGS):
            yield f"{name}={value}"
    for name in options.__struct_fields__:
        if name not in BESIDE:
            yield f"{name}={getattr(options, name)!r}"
    yield str(options.thread_count)
    for file in sorted(PACKAGE.rglob("*.py")):
        yield from (str(file.relative_to(PACKAGE)), file.read_bytes())
    for file in sorted(model.iterdir()):
        yield file.name
        if file.is_file():
            yield from _content(file)


def _content(file: Path) -> Iterator[bytes]:
    """Of weights and settings; of other files the size, as the forward pass reads none."""
    found = file.stat()
    yield str(found.st_size).encode()
    if file.suffix not in (".json", ".safetensors"):
        return
    with file.open("rb") as opened:
        if found.st_size <= WHOLE_BYTES:
            yield hashlib.sha256(opened.read()).digest()
            return
        yield str(found.st_mtime_ns).encode()
        for sample in range(SAMPLES):
            opened.seek((found.st_size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
            yield opened.read(SAMPLE_BYTES)


def version_of(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "none"


@cache
def cpu() -> str:
    """Its kind and instruction sets."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:  # no Linux
        return f"{platform.machine()} {platform.processor()}"
    moving = ("processor", "cpu MHz", "core id", "apicid", "initial apicid", "bogomips", "BogoMIPS")
    return "\n".join(line for line in first.splitlines() if not line.startswith(moving))
