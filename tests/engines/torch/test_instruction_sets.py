"""Each level of instruction sets, held to it in a process of its own: what is computed with what.

A level that this CPU does not reach is tested as the one it does, so these run on any x86.
"""

from __future__ import annotations

import asyncio
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from llmserve.core.clock import MonotonicClock
from llmserve.core.types import Chunk, Request, SamplingParams
from llmserve.engines.torch import cpu_isa
from llmserve.engines.torch.cpu_isa import LEVELS, VARIABLE
from llmserve.engines.torch.engine import TorchEngine
from llmserve.engines.torch.model import int8_linears, loading
from llmserve.engines.torch.model.attention import UnsupportedModel
from llmserve.engines.torch.model.select_forward import load
from llmserve.engines.torch.options import parse
from support.instruction_sets import (
    MISSING,
    X86,
    has,
    held_to,
    multiplies_bfloat16,
    packs,
    printed,
    reaches,
    run_held,
    sums_bytes,
)
from support.tiny_models import greedy

HERE = Path(__file__).parent
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRODUCTS = """
import json
import torch
from llmserve.engines.torch.model import int8_linears
from llmserve.engines.torch.model.int8_linears import Int8
from llmserve.engines.torch.model.packed_linears import Packed, Plain, fixed

def off(mine, its):
    return float((mine.float() - its.float()).norm() / its.float().norm())

torch.manual_seed(0)
found = {"kinds": {}, "off": {}, "refusals": {}}
for name in ("float32", "bfloat16", "float16"):
    weight = torch.randn(256, 256).to(getattr(torch, name))
    x = torch.randn(9, 256).to(weight.dtype)
    print("#", name, flush=True)
    try:
        found["off"][name] = off(Packed(weight, None)(x), Plain(weight, None)(x))
    except RuntimeError as error:
        found["refusals"][name] = str(error)
    print("# else", flush=True)
    found["kinds"][name] = type(fixed(weight)).__name__
weight, x = torch.randn(256, 256), torch.randn(9, 256)
found["overflows"] = int8_linears.overflows()
print("# int8", flush=True)
found["off"]["int8"] = off(Int8(weight, None)(x), Plain(weight, None)(x))
print("# else", flush=True)

found["aten"] = torch.backends.cpu.get_cpu_capability()
print(json.dumps(found))
"""
VECTORS = """
import json
from llvmlite import binding
from numba import njit, types
from llmserve.engines.torch.cpu_kernels.limits import refuse_machine
from llmserve.engines.torch.cpu_kernels.vectors import make_tile

tile = make_tile(1, 4)

@njit
def one(x, x_step, first, second, w_step, blocks, out, out_step, ahead):
    tile(x, x_step, first, second, w_step, blocks, out, out_step, ahead)

one.compile((types.int64,) * 9)
(text,) = one.inspect_asm().values()
try:
    refuse_machine()
    refusal = ""
except ValueError as error:
    refusal = str(error)
words = {name: name in text for name in ("zmm", "ymm", "vfmadd")}
print(json.dumps(words | {"refusal": refusal}))
"""

pytestmark = pytest.mark.skipif(not X86, reason="levels of instruction sets are x86's")


def by_name(lines: list[str]) -> dict[str, str]:
    """oneDNN's words for the primitives that it ran, behind the heading they were run under."""
    found: dict[str, str] = {}
    heading = ""
    for line in lines:
        if line.startswith("#"):
            heading = line.removeprefix("# ")
        elif "exec,cpu,inner_product" in line or "exec,cpu,matmul" in line:
            found[heading] = found.get(heading, "") + line
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_products_are_right_or_refused_by_name_at_each_level(level: str) -> None:
    level = held_to(level)
    found, lines = printed(level, PRODUCTS, ONEDNN_VERBOSE="1")
    for name, dtype in DTYPES.items():
        if packs(dtype, level):
            assert found["kinds"][name] == "Packed"
            assert found["off"][name] < 1e-2
        else:
            assert found["kinds"][name] == "Plain"
            assert MISSING[dtype] in found["refusals"][name]
    assert found["overflows"] is not sums_bytes(level)
    assert found["off"]["int8"] < 0.03
    if not reaches(level, "avx512"):
        assert found["aten"] == ("DEFAULT" if level == "sse41" or not has("avx2") else "AVX2")
    tiles = reaches(level, "amx") and has("amx-tile")
    ran = by_name(lines)
    assert "float32" in ran
    assert "int8" in ran
    for name, taken in ran.items():
        if name in ("bfloat16", "int8"):
            assert ("amx" in taken) is tiles, f"{name} by {taken}"
        if not reaches(level, "avx512"):
            assert "avx512" not in taken


@pytest.mark.parametrize("level", LEVELS)
def test_bfloat16_is_taken_unasked_only_where_the_level_multiplies_it(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = held_to(level)
    monkeypatch.setenv(VARIABLE, level)
    cpu = torch.device("cpu")
    fast = loading.pick_dtype("auto", cpu, 2048) is torch.bfloat16
    assert fast is multiplies_bfloat16(level)
    assert loading.pick_dtype("auto", cpu, 256) is torch.float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    fast = loading.pick_dtype("auto", cpu, 2048) is torch.bfloat16
    assert fast is reaches(level, "avx512_bf16"), "on a CPU that has it all"


@pytest.mark.parametrize("level", ["sse41", "avx2", "amx"])
def test_kernels_of_our_own_keep_to_the_level_s_vectors(level: str) -> None:
    level = held_to(level)
    found, _ = printed(level, VECTORS)
    assert found["zmm"] is (reaches(level, "avx512") and has("avx512f"))
    fused = reaches(level, "avx2") and has("avx2", "fma")
    assert found["vfmadd"] is fused
    assert ("(FMA)" in found["refusal"]) is not fused


@pytest.mark.timeout(600)
@pytest.mark.parametrize("level", ["avx2", "avx512"])
def test_the_products_own_tests_pass_at_the_level(level: str) -> None:
    """On a CPU without AVX-512, and with AVX-512 but neither VNNI nor bfloat16."""
    done = run_held(
        held_to(level), "-m", "pytest", "-q", "-p", "no:cacheprovider",
        str(HERE / "test_compact.py"), "-k", "product or int8 or halves or many_rows",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.timeout(600)
def test_the_kernels_own_tests_pass_with_half_as_wide_vectors() -> None:
    done = run_held(
        held_to("avx2"), "-m", "pytest", "-q", "-p", "no:cacheprovider",
        str(HERE / "test_cpu_kernels.py"), "-k",
        "grouped and (same_bits or logits_of_transformers) or two_threads_give",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_without_fma_the_compact_form_is_taken_and_the_reason_told(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "sse41")
    options: dict[str, object] = {"model": llama, "dtype": "bfloat16", "device": "cpu"}
    path = load(parse(options)).path
    assert path.startswith("compact")
    assert "not fused: this CPU cannot multiply and add in one step (FMA)" in path
    with pytest.raises(UnsupportedModel, match=r"no fused form .* \(FMA\)"):
        load(parse({**options, "forward": "fused"}))


def started(model: Path, **options: Any) -> tuple[dict[str, str], list[int]]:
    """Details of an engine with a process of its own, and a reply."""
    chunks: list[Chunk] = []

    async def main() -> dict[str, str]:
        engine = TorchEngine(
            sink=lambda _: None, clock=MonotonicClock(), model=model, dtype="float32", threads=1,
            **options,
        )  # fmt: skip
        await engine.start()
        try:
            sampling = SamplingParams(max_tokens=12, temperature=0.0)
            request = Request(id="r", prompt_ids=(5, 6, 7), sampling=sampling, arrival=0.0)
            await engine.generate(request, chunks.append)
            return engine.info.details
        finally:
            await engine.stop()

    details = asyncio.run(asyncio.wait_for(main(), 100))
    return details, [token for chunk in chunks for token in chunk.token_ids]


def test_an_engine_held_to_avx2_says_so_and_what_it_says_else_is_the_same(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "avx2")
    details, reply = started(llama)
    assert details["cpu_isa"] == "avx2 at most (LLMSERVE_CPU_ISA)"
    assert reply == greedy(llama, (5, 6, 7), 12)


def test_an_engine_without_vnni_takes_int8_by_halves(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "avx2")
    details, reply = started(llama, quantization="int8")
    assert f"int8 {int8_linears.BY_HALVES}" in details["forward"]
    assert reply


def test_a_level_that_does_not_exist_is_refused_where_the_engine_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "avx3")
    with pytest.raises(ValueError, match=r"LLMSERVE_CPU_ISA is one of sse41, .*, not 'avx3'"):
        TorchEngine(sink=lambda _: None, clock=MonotonicClock())


def test_a_cpu_that_is_not_x86_has_no_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setenv(VARIABLE, "avx2")
    with pytest.raises(ValueError, match="for x86 CPUs, and this one is aarch64: unset it"):
        cpu_isa.limit()
    monkeypatch.setenv(VARIABLE, "")
    assert cpu_isa.limit() is None
    assert cpu_isa.allows("amx")


def test_nothing_is_held_where_nothing_is_asked_for() -> None:
    assert cpu_isa.environment(None) == {}
    assert cpu_isa.environment("amx") == {VARIABLE: "amx", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}
