"""Vector kernels as numba intrinsics: LLVM's 16-wide vectors, so zmm, ymm or NEON by the CPU.

numba vectorises loops as LLVM sees fit, which for a product of bfloat16 with several rows is not
at all. So the vectors are written out as LLVM's own, and what is left to it are registers and
instructions. Rows are float32 and *parted*: of every 32 columns the even ones first, then the odd.
Weights and the KV cache stay plain bfloat16, and a vector of 16 pairs of them comes apart with one
shift and one mask, in a row's order. Counts of columns are multiples of 32 throughout.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llmserve.engines.torch.cpu_kernels.intrinsics import F32, I32, I64, address, declared, prefetch

WIDTH = 16
AHEAD = 32
"""Rows of values."""
VF, VI = ir.VectorType(F32, WIDTH), ir.VectorType(I32, WIDTH)
EVENS, ODDS = [*range(0, 32, 2)], [*range(1, 32, 2)]


def constant(value: float, kind: Any = VF) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def load(b: Any, at: Any, kind: Any, align: int = 4) -> Any:
    got = b.load(b.inttoptr(at, kind.as_pointer()))
    got.align = align
    return got


def store(b: Any, value: Any, at: Any) -> None:
    b.store(value, b.inttoptr(at, value.type.as_pointer())).align = 4


def math(b: Any, name: str, *arguments: Any) -> Any:
    kind = arguments[0].type
    full = f"llvm.{name}.v{kind.count}f32"
    return b.call(declared(b, full, kind, *[kind] * len(arguments)), arguments)


def shuffle(b: Any, one: Any, two: Any, lanes: list[int]) -> Any:
    return b.shuffle_vector(one, two, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def splat(b: Any, scalar: Any) -> Any:
    v = b.insert_element(ir.Constant(VF, ir.Undefined), scalar, I32(0))
    return b.shuffle_vector(v, v, constant(0, VI))


def zeroed(b: Any, count: int) -> list[Any]:
    slots = [cgutils.alloca_once(b, VF) for _ in range(count)]
    for slot in slots:
        b.store(constant(0.0), slot)
    return slots


def parted(b: Any, raw: Any, odd: int) -> Any:
    """Of 16 pairs of bfloat16 the even or the odd columns, in float32."""
    bits = b.and_(raw, constant(-65536, VI)) if odd else b.shl(raw, constant(16, VI))
    return b.bitcast(bits, VF)


def total(b: Any, v: Any) -> Any:
    for half in (8, 4, 2, 1):
        high = shuffle(b, v, v, [*range(half, 2 * half)])
        v = b.fadd(shuffle(b, v, v, [*range(half)]), high)
    return b.extract_element(v, I32(0))


def totals(b: Any, many: list[Any]) -> Any:
    """The sums of up to 16 vectors in the lanes of one, each by the tree of `total`: halves are
    added and joined two by two, as in a transposition."""
    while len(many) < WIDTH:
        many = many + many[: WIDTH - len(many)]
    width = WIDTH
    while width > 1:
        half = width // 2
        low = [first + i for first in range(0, WIDTH, width) for i in range(half)]
        high = [lane + half for lane in low]
        many = [
            b.fadd(
                shuffle(b, one, two, low + [WIDTH + i for i in low]),
                shuffle(b, one, two, high + [WIDTH + i for i in high]),
            )
            for one, two in zip(many[0::2], many[1::2], strict=True)
        ]
        width = half
    return many[0]


def exp(b: Any, x: Any) -> Any:
    """To about 2e-7, as 2^n p(r) with Cephes' polynomial (expf), clamped to ±88."""
    x = math(b, "maxnum", math(b, "minnum", x, constant(88.0)), constant(-87.0))
    n = math(b, "rint", b.fmul(x, constant(1.4426950408889634)))
    r = math(b, "fma", n, constant(-0.693359375), x)
    r = math(b, "fma", n, constant(2.12194440e-4), r)
    p = constant(1.9875691500e-4)
    for k in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = math(b, "fma", p, r, constant(k))
    p = math(b, "fma", p, b.fmul(r, r), b.fadd(r, constant(1.0)))
    power = b.shl(b.add(b.fptosi(n, VI), constant(127, VI)), constant(23, VI))
    return b.fmul(p, b.bitcast(power, VF))


def make_tile(m: int, n: int) -> Any:
    """tile(x, x_step, first, second, w_step, blocks, out, out_step, ahead): `m` rows times `n`
    rows of a weight, half of them from `first` on and half from `second`, added to out[m, n].

    Steps are in bytes, `blocks` are of 32 columns. One accumulator for each sum, so that a row's
    sums do not depend on the rows beside it. The cache line `ahead` bytes on is fetched for each
    that is read. m * n is at most 16, or registers run out.
    """

    def build(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, x_step, first, second, w_step, blocks, out, out_step, ahead = arguments
        xs = [b.add(x, b.mul(x_step, I64(i))) for i in range(m)]
        ws = [b.add(at, b.mul(w_step, I64(i))) for at in (first, second) for i in range(n // 2)]
        sums = zeroed(b, m * n)
        with cgutils.for_range(b, blocks) as loop:
            w_off, x_off = b.shl(loop.index, I64(6)), b.shl(loop.index, I64(7))
            raw = []
            for w in ws:
                at = b.add(w, w_off)
                raw.append(load(b, at, VI, 2))
                prefetch(b, b.add(at, ahead), 3)
            for odd in (0, 1):
                columns = [parted(b, one, odd) for one in raw]
                for i in range(m):
                    row = load(b, b.add(xs[i], b.add(x_off, I64(64 * odd))), VF)
                    for j in range(n):
                        slot = sums[i * n + j]
                        b.store(math(b, "fma", row, columns[j], b.load(slot)), slot)
        lanes = totals(b, [b.load(slot) for slot in sums])
        for i in range(m):
            some = shuffle(b, lanes, lanes, [*range(i * n, i * n + n)])
            to = b.add(out, b.mul(out_step, I64(i)))
            store(b, b.fadd(some, load(b, to, some.type)), to)
        return context.get_dummy_value()

    @intrinsic
    def tile(
        typing: Any, x: Any, x_step: Any, first: Any, second: Any, w_step: Any, blocks: Any,
        out: Any, out_step: Any, ahead: Any,
    ) -> Any:  # fmt: skip
        return types.void(*[address] * 9), build

    return tile


def make_weighted(m: int) -> Any:
    """weighted(p, p_step, v, v_step, count, out, out_step, scales): out[m, 32] = p[m, count] times
    32 columns of v, each row times its scale; out is parted. Values that are a few rows further on
    are fetched ahead."""

    def build(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        p, p_step, v, v_step, count, out, out_step, scales = arguments
        sums = zeroed(b, 2 * m)
        ps = [b.add(p, b.mul(p_step, I64(i))) for i in range(m)]
        with cgutils.for_range(b, count) as loop:
            at = b.add(v, b.mul(v_step, loop.index))
            raw = load(b, at, VI, 2)
            prefetch(b, b.add(at, b.mul(v_step, I64(AHEAD))), 3)
            columns = [parted(b, raw, odd) for odd in (0, 1)]
            off = b.shl(loop.index, I64(2))
            for i in range(m):
                weight = splat(b, load(b, b.add(ps[i], off), F32))
                for j in (0, 1):
                    slot = sums[2 * i + j]
                    b.store(math(b, "fma", weight, columns[j], b.load(slot)), slot)
        for i in range(m):
            scale = splat(b, load(b, b.add(scales, I64(4 * i)), F32))
            at = b.add(out, b.mul(out_step, I64(i)))
            for j in (0, 1):
                store(b, b.fmul(scale, b.load(sums[2 * i + j])), b.add(at, I64(64 * j)))
        return context.get_dummy_value()

    @intrinsic
    def weighted(
        typing: Any, p: Any, p_step: Any, v: Any, v_step: Any, count: Any, out: Any, out_step: Any,
        scales: Any,
    ) -> Any:  # fmt: skip
        return types.void(*[address] * 8), build

    return weighted


@intrinsic
def norm_row(typing: Any, source: Any, weight: Any, out: Any, count: Any, eps: Any) -> Any:
    """RMS norm of `count` floats."""

    def build(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        source, weight, out, count, eps = arguments
        (squares,) = zeroed(b, 1)
        steps = b.lshr(count, I64(4))
        with cgutils.for_range(b, steps) as loop:
            v = load(b, b.add(source, b.shl(loop.index, I64(6))), VF)
            b.store(math(b, "fma", v, v, b.load(squares)), squares)
        mean = b.fdiv(total(b, b.load(squares)), b.sitofp(count, F32))
        root = b.call(declared(b, "llvm.sqrt.f32", F32, F32), [b.fadd(mean, eps)])
        scale = splat(b, b.fdiv(F32(1.0), root))
        with cgutils.for_range(b, steps) as loop:
            off = b.shl(loop.index, I64(6))
            v = b.fmul(load(b, b.add(source, off), VF), scale)
            store(b, b.fmul(v, load(b, b.add(weight, off), VF)), b.add(out, off))
        return context.get_dummy_value()

    return types.void(address, address, address, types.int64, types.float32), build


@intrinsic
def silu_mul(typing: Any, gate: Any, up: Any, out: Any) -> Any:
    """silu(gate) * up of 32 columns in their plain order, parted into `out`."""

    def build(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        gate, up, out = arguments
        both = []
        for off in (I64(0), I64(64)):
            g, u = load(b, b.add(gate, off), VF), load(b, b.add(up, off), VF)
            below = b.fadd(exp(b, b.fneg(g)), constant(1.0))
            both.append(b.fmul(b.fdiv(g, below), u))
        for lanes, off in ((EVENS, I64(0)), (ODDS, I64(64))):
            store(b, shuffle(b, both[0], both[1], lanes), b.add(out, off))
        return context.get_dummy_value()

    return types.void(address, address, address), build


@intrinsic
def softmax_row(typing: Any, at: Any, steps: Any) -> Any:
    """exp(x - max) in place over steps * 16 floats; gives 1 / their sum. -inf, which pads, becomes
    0, whatever `exp` is clamped to."""

    def build(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        at, steps = arguments
        least = constant(float("-inf"))
        best = cgutils.alloca_once(b, VF)
        b.store(least, best)
        with cgutils.for_range(b, steps) as loop:
            v = load(b, b.add(at, b.shl(loop.index, I64(6))), VF)
            b.store(math(b, "maxnum", v, b.load(best)), best)
        most = b.load(best)
        for half in (8, 4, 2, 1):
            turned = shuffle(b, most, most, [(i + half) % WIDTH for i in range(WIDTH)])
            most = math(b, "maxnum", most, turned)
        (mass,) = zeroed(b, 1)
        with cgutils.for_range(b, steps) as loop:
            where = b.add(at, b.shl(loop.index, I64(6)))
            x = load(b, where, VF)
            e = exp(b, b.fsub(x, most))
            e = b.select(b.fcmp_ordered("==", x, least), constant(0.0), e)
            store(b, e, where)
            b.store(b.fadd(e, b.load(mass)), mass)
        return b.fdiv(F32(1.0), total(b, b.load(mass)))

    return types.float32(address, types.int64), build
