"""Addresses, bits and atomics for numba: what its own types cannot say.

All addresses are int64, and nothing checks them: a wrong one kills the process.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

compiled = njit(nogil=True, boundscheck=False, error_model="numpy")
"""A part of a kernel: compiled with it, and again if it is."""

F32 = ir.FloatType()
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
address = types.int64


def declared(b: Any, name: str, result: Any, *arguments: Any) -> Any:
    """LLVM's own function `name`, declared once in a module."""
    known = b.module.globals.get(name)
    return known or ir.Function(b.module, ir.FunctionType(result, arguments), name)


def prefetch(b: Any, at: Any, locality: int) -> None:
    pointer = I8.as_pointer()
    hint = declared(b, "llvm.prefetch.p0", ir.VoidType(), pointer, I32, I32, I32)
    b.call(hint, [b.inttoptr(at, pointer), I32(0), I32(locality), I32(1)])


def bitcast(source: Any, to: Any, kind: Any) -> Any:
    """A function that takes the bits of one type for another's."""

    @intrinsic
    def cast(typing: Any, value: Any) -> Any:
        def build(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            return b.bitcast(arguments[0], kind)

        return to(source), build

    return cast


bits_to_float = bitcast(types.int32, types.float32, F32)
float_to_bits = bitcast(types.float32, types.int32, I32)


def pointer(to: Any, kind: Any) -> Any:
    """A function of an address: what lies from there on, to be indexed."""

    @intrinsic
    def values(typing: Any, at: Any) -> Any:
        def build(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            return b.inttoptr(arguments[0], kind.as_pointer())

        return types.CPointer(to)(address), build

    return values


floats = pointer(types.float32, F32)
halves = pointer(types.uint16, I16)
"""bfloat16, as bits."""
integers = pointer(types.int64, I64)


@intrinsic
def fetch_add(typing: Any, at: Any, by: Any) -> Any:
    def build(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        pointer = b.inttoptr(arguments[0], I64.as_pointer())
        return b.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(address, types.int64), build


@intrinsic
def load_acquire(typing: Any, at: Any) -> Any:
    def build(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        return b.load_atomic(b.inttoptr(arguments[0], I64.as_pointer()), "acquire", 8)

    return types.int64(address), build


@intrinsic
def pause(typing: Any) -> Any:
    """Leaves the core's other thread some room while this one spins; nothing where not x86."""

    def build(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        if platform.machine() in ("x86_64", "AMD64"):
            b.call(declared(b, "llvm.x86.sse2.pause", ir.VoidType()), [])
        return context.get_dummy_value()

    return types.void(), build
