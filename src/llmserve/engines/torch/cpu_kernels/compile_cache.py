"""Where compiled kernels are kept between starts: compiling takes seconds, linking them does not.

What is kept is machine code, a file for each kernel with its digest. A start that finds it needs
llvmlite alone: numba and the kernels' own modules take half a second to import. There is a folder
for each state of this package's files, of numba and of the CPU, for old code would read a new
layout at raw addresses. What lies there is run, so it must be the user's own and nobody else's;
where it cannot be, nothing is kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from llvmlite import binding

import llmserve
from llmserve.engines.torch.user_cache import cache_folder, own

OLD_FOLDERS = 3
"""Of other states, the latest used: two versions side by side need not compile in turns."""
NAME = re.compile(r"[0-9a-f]{40}")

_DTOR = "NRT_MemInfo_call_dtor"
"""What numba's code calls for an array that it owns, as these kernels do none."""


class MachineCode(msgspec.Struct, frozen=True):
    """A function of int64s, as LLVM compiled it."""

    symbol: str
    needs: tuple[str, ...]
    """Names that the process must have for it."""
    code: bytes


@dataclass(frozen=True, slots=True)
class Kernel:
    """A linked function. A call holds no GIL."""

    call: Callable[..., int]
    compiled: bool
    """Here and now, and not read."""
    engine: Any
    """What holds the code in memory."""

    def __call__(self, *arguments: int) -> int:
        answer = ctypes.c_int64()
        if status := self.call(ctypes.addressof(answer), 0, *arguments):
            raise RuntimeError(f"a kernel ended with numba's status {status}")
        return answer.value


@functools.cache
def compiled_in(folder: Path | None, place: str, arguments: int) -> Kernel:
    """The function at `place`, as "module:name", of so many int64s: from the folder where it is
    there, else compiled. Once in a process."""
    file = None if folder is None else folder / f"{place.rpartition('.')[2].replace(':', '.')}.code"
    found = None if file is None else _read(file)
    if found is not None and (linked := _linked(found, arguments, compiled=False)) is not None:
        return linked
    made = _compiled(place, arguments)
    linked = _linked(made, arguments, compiled=True)
    if linked is None:
        raise RuntimeError(f"{place} was compiled and cannot be linked; it needs {made.needs}")
    if file is not None:
        _write(file, made)
    return linked


def _compiled(place: str, arguments: int) -> MachineCode:
    from numba import njit, types

    module, _, name = place.partition(":")
    function = getattr(import_module(module), name)
    made: Any = njit(
        nogil=True, boundscheck=False, error_model="numpy",
        no_cpython_wrapper=True, no_cfunc_wrapper=True,
    )(function)  # fmt: skip
    made.compile(types.int64(*[types.int64] * arguments))
    (result,) = made.overloads.values()
    _, _, (code, bitcode) = result.library.serialize_using_object_code()
    del bitcode
    declared = [one.name for one in result.library._final_module.functions if one.is_declaration]
    needs = tuple(one for one in declared if not one.startswith("llvm."))
    return MachineCode(result.fndesc.llvm_func_name, needs, bytes(code))


def _linked(made: MachineCode, arguments: int, *, compiled: bool) -> Kernel | None:
    """None where the process lacks a name that the code needs: LLVM would end it."""
    with contextlib.suppress(RuntimeError):  # later releases have nothing left to do here
        binding.initialize()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    if binding.address_of_symbol(_DTOR) is None:
        binding.add_symbol(_DTOR, ctypes.cast(_nothing, ctypes.c_void_p).value)
    if any(binding.address_of_symbol(one) is None for one in made.needs):
        return None
    machine = binding.Target.from_default_triple().create_target_machine()
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(made.code))
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * arguments)
    return Kernel(kind(engine.get_function_address(made.symbol)), compiled, engine)


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _nothing(_: int) -> None:
    """Stands for `_DTOR`, which nothing calls."""


def _read(file: Path) -> MachineCode | None:
    """None where it is not there, or damaged."""
    try:
        raw = file.read_bytes()
        if hashlib.sha256(raw[32:]).digest() != raw[:32]:
            return None
        return msgspec.msgpack.decode(raw[32:], type=MachineCode)
    except (OSError, msgspec.DecodeError):
        return None


def _write(file: Path, made: MachineCode) -> None:
    """A process that reads meanwhile finds nothing or all of it."""
    body = msgspec.msgpack.encode(made)
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(dir=file.parent, suffix=".new")
        try:
            with os.fdopen(handle, "wb") as opened:
                opened.write(hashlib.sha256(body).digest() + body)
            Path(path).replace(file)
        except OSError:
            Path(path).unlink(missing_ok=True)


def kernel_folder() -> Path | None:
    """The folder for this state, made where it is not there; None where there is no safe one."""
    folder = cache_folder("kernels", state())
    if folder is None:
        return None
    try:
        os.utime(folder)
        forget_old(folder.parent, folder)
    except OSError:  # not writable
        return None
    return folder


def state() -> str:
    """All that the compiled code depends on, in a name."""
    if find_spec("numba") is None:
        raise ImportError("numba is not installed")
    files = sorted(Path(__file__).parent.glob("*.py"))
    parts: list[str | bytes] = [
        llmserve.__version__, metadata.version("numba"), metadata.version("llvmlite"),
        sys.implementation.cache_tag or "", binding.get_host_cpu_name(),
        binding.get_host_cpu_features().flatten(),
        *(f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("NUMBA_")),
        *(part for file in files for part in (file.name, file.read_bytes())),
    ]  # fmt: skip
    whole = hashlib.sha256()
    for one in parts:
        whole.update(hashlib.sha256(one if isinstance(one, bytes) else one.encode()).digest())
    return whole.hexdigest()[:40]


def forget_old(ours: Path, current: Path) -> None:
    others = [
        one for one in ours.iterdir() if NAME.fullmatch(one.name) and one != current and own(one)
    ]
    others.sort(key=lambda one: one.stat().st_mtime, reverse=True)
    for one in others[OLD_FOLDERS:]:
        shutil.rmtree(one, ignore_errors=True)
