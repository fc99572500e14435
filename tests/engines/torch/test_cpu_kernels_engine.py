"""The engine by kernels of its own: a reply is the same in any company; what fails falls back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import textwrap
import weakref
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from llmserve.core.clock import MonotonicClock
from llmserve.core.types import Chunk, Request, SamplingParams
from llmserve.engines.base import EngineError, ReportsProgress
from llmserve.engines.process.client import ProcessClient
from llmserve.engines.process.messages import Busy
from llmserve.engines.torch.cpu_kernels.kernel import FusedRows
from llmserve.engines.torch.engine import TorchEngine
from llmserve.engines.torch.kv.store import KvStore
from llmserve.engines.torch.model import race, select_forward
from llmserve.engines.torch.model.attention import UnsupportedModel
from llmserve.engines.torch.model.compact_llama import Compact
from llmserve.engines.torch.model.flat_model import FlatModel
from llmserve.engines.torch.model.packed_linears import Plain
from llmserve.engines.torch.model.row_blocks import RowBlocks
from llmserve.engines.torch.model.select_forward import load
from llmserve.engines.torch.model.verify import Stretch, after, difference
from llmserve.engines.torch.model.weights import Weights
from llmserve.engines.torch.options import parse
from support.tiny_models import SHAPE, VOCAB, Drive, Driven, save_model

pytestmark = pytest.mark.timeout(400)  # the first one compiles the kernels

WIDE = SHAPE | {"head_dim": 32, "initializer_range": 0.1}
MAX_TOKENS = 24
Said = list[tuple[int, tuple[Any, ...]]]


def opened(folder: Path, **options: object) -> FlatModel:
    return load(parse({"model": folder, "dtype": "bfloat16", "device": "cpu", **options}))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of widths that the kernels take."""
    from transformers import LlamaConfig

    with torch.random.fork_rng():
        return save_model(tmp_path_factory.mktemp("wide"), LlamaConfig(**WIDE))


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Qwen3Config

    with torch.random.fork_rng():
        return save_model(tmp_path_factory.mktemp("qwen3"), Qwen3Config(**WIDE))


@pytest.fixture
def drive(drive: Drive) -> Drive:
    return partial(drive, forward="fused", dtype="bfloat16")


def prompts(count: int, longest: int, seed: int) -> list[tuple[int, ...]]:
    dice = random.Random(seed)
    return [
        tuple(dice.randrange(3, VOCAB) for _ in range(dice.randint(1, longest)))
        for _ in range(count)
    ]


def ask(driven: Driven, given: list[tuple[int, ...]], i: int) -> None:
    """Greedy and drawn replies in turns."""
    driven.submit(
        f"r{i}", given[i], max_tokens=MAX_TOKENS, ignore_eos=True, logprobs=2,
        temperature=float(i % 2), seed=i,
    )  # fmt: skip


def said(driven: Driven, i: int) -> Said:
    """Each token with its log-probability and that of the likeliest: of bits, not of about."""
    return [
        (token, (told.logprob, told.top))
        for delta in driven.deltas[f"r{i}"]
        for token, told in zip(delta.token_ids, delta.logprobs or (), strict=True)
    ]


def alone(drive: Drive, folder: Path, given: list[tuple[int, ...]]) -> list[Said]:
    replies = []
    for i in range(len(given)):
        driven = drive(folder, prefix_caching=False)
        ask(driven, given, i)
        driven.finish()
        replies.append(said(driven, i))
    return replies


def together(driven: Driven, given: list[tuple[int, ...]], seed: int) -> list[Said]:
    """All of them, arriving while others run."""
    dice = random.Random(seed)
    for i in range(len(given)):
        ask(driven, given, i)
        for _ in range(dice.randint(0, 5)):
            driven.step()
    driven.finish()
    return [said(driven, i) for i in range(len(given))]


@pytest.mark.parametrize("folder", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("mid-flight arrivals", {}),
        ("steps of several blocks", {"max_num_batched_tokens": 300}),
        ("chunked prompts", {"max_num_batched_tokens": 11, "long_prefill_token_threshold": 7}),
        ("preemption", {"kv_blocks": 45, "prefix_caching": False}),
    ],
)
def test_a_reply_is_bit_for_bit_what_it_is_alone(
    folder: str, case: str, settings: dict[str, Any], drive: Drive, request: pytest.FixtureRequest
) -> None:
    path, given = request.getfixturevalue(folder), prompts(9, 40, seed=1)
    if case == "steps of several blocks":
        given = [prompt * 7 for prompt in given]
    expected = alone(drive, path, given)
    assert len({tuple(token for token, _ in reply) for reply in expected}) == 9
    driven = drive(path, **settings)
    assert together(driven, given, seed=2) == expected
    records = [step.record for step in driven.steps if step.record]
    assert any(r.prefill_tokens and r.decode_tokens for r in records), "nothing was mixed"
    if case == "steps of several blocks":
        most = max(r.prefill_tokens + r.decode_tokens for r in records)
        assert most > 2 * select_forward.MOST_FEW
    if case == "preemption":
        assert any(r.preempted for r in records), "the case did not preempt"


def test_known_beginnings_change_no_bit(llama: Path, drive: Drive) -> None:
    head = prompts(1, 90, seed=3)[0] * 3
    given = [head[:60] + tail for tail in prompts(5, 9, seed=4)] + [head[:60]]
    driven = drive(llama)
    assert together(driven, given, seed=5) == alone(drive, llama, given)
    assert sum(step.record.cached_tokens for step in driven.steps if step.record) > 60


def test_prompts_wider_than_the_kernels_go_on_where_torch_left_them(llama: Path) -> None:
    model, plain = opened(llama, forward="fused"), opened(llama, forward="plain")
    model.most_few = select_forward.MOST_FEW
    ids = [3 + (7 * i * i) % (VOCAB - 3) for i in range(select_forward.MOST_FEW * 3)]
    found = []
    for one in (model, plain):
        kv = KvStore(one.geometry)
        wide = after(one, kv, [Stretch("a", ids, 0, len(ids) - 5)])
        few = after(one, kv, [Stretch("a", ids, len(ids) - 5, len(ids))])
        found.append(torch.cat([wide, few]))
    assert difference(*found) < 0.05


def test_logits_are_those_of_compact_but_for_rounding(llama: Path) -> None:
    fused, compact = opened(llama, forward="fused"), opened(llama, forward="compact")
    assert fused.few is not None
    assert compact.few is None
    found = []
    for model in (fused, compact):
        kv = KvStore(model.geometry)
        many = [Stretch(str(i), [*range(3, 12 + i)], 0, 9 + i) for i in range(5)]
        found.append(after(model, kv, many))
    assert 0 < difference(*found) < 0.05


def weights_of(model: FlatModel) -> Weights:
    assert isinstance(model.few, RowBlocks)
    assert isinstance(model.few.few, FusedRows)
    return model.few.few._weights


def test_no_weight_is_held_twice(llama: Path) -> None:
    model = opened(llama, forward="fused")
    assert isinstance(model.compute, Compact)
    mine, its = model.compute._layers[1], weights_of(model).layers[1]
    for product, weight in (
        (mine.qkv, its.qkv), (mine.out, its.out), (mine.gate_up, its.gate_up),
        (mine.down, its.down),
    ):  # fmt: skip
        assert isinstance(product, Plain)
        assert product._weight.data_ptr() == weight.data_ptr()
    assert not [*model.network.model.layers.parameters()], "transformers' layers hold them too"


@pytest.mark.parametrize(
    ("slower", "path", "most"),
    [
        ({}, "fused (kernels of our own)", inf),
        ({128: 2.0}, "fused (kernels of our own), steps of over 128 rows by torch",
         select_forward.MOST_FEW),
        ({8: 1.3}, "compact, joined products; not fused: "
         "1.3 times as slow as packed products with 8 row(s)", 0),
    ],
)  # fmt: skip
def test_kernels_are_taken_where_a_trial_says_that_they_pay(
    slower: dict[int, float], path: str, most: float, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(model: FlatModel, kv: KvStore, step: list[Stretch]) -> float:
        after(model, kv, step)
        rows = sum(one.end - one.start for one in step)
        return 1.0 if model.few is None else slower.get(rows, 0.9)

    def noted(self: select_forward.ForwardChoices, weights: Weights) -> FusedRows:
        rows = real(self, weights)
        opened_rows.append(weakref.ref(rows))
        return rows

    real, opened_rows = select_forward.ForwardChoices._open_rows, list[weakref.ref[FusedRows]]()
    monkeypatch.setattr(select_forward.ForwardChoices, "_open_rows", noted)
    monkeypatch.setattr(race, "seconds", seconds)
    model = opened(llama)
    assert (model.path, model.most_few) == (path, most)
    assert isinstance(model.compute, Compact)
    (rows,) = opened_rows
    assert (rows() is not None) == (most > 0), "what is not taken holds weights"
    insisted = opened(llama, forward="fused")
    assert insisted.most_few == inf, "insisted on, they are not tried"


def test_kernels_that_come_out_wrong_are_not_taken(
    llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = FusedRows.__call__

    def wrong(self: FusedRows, ids: list[int], *rest: Any) -> torch.Tensor:
        return real(self, ids, *rest) * (1.5 if len(ids) == 9 else 1)

    monkeypatch.setattr(FusedRows, "__call__", wrong)
    model = opened(llama)
    assert model.few is None
    assert "not fused: its logits come out 50" in model.path
    assert "come out" in capsys.readouterr().err, "the log has nothing"
    with pytest.raises(UnsupportedModel, match="no fused form of this model here: its logits"):
        opened(llama, forward="fused")


def test_without_numba_the_next_way_is_taken(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = "llmserve.engines.torch.cpu_kernels"
    for name in [name for name in sys.modules if name.startswith(kernels)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    model = opened(llama)
    assert isinstance(model.compute, Compact)
    assert "numba" in model.path
    with pytest.raises(UnsupportedModel, match=r"no fused form of this model here: .*numba"):
        opened(llama, forward="fused")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "float32"}, "kernels are for bfloat16 on a CPU, not for float32 on cpu"),
        ({"quantization": "int8"}, "kernels are not for int8"),
    ],
)
def test_what_the_kernels_are_not_for_is_told_who_insists(
    llama: Path, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        opened(llama, forward="fused", **options)
    assert opened(llama, **options).path.startswith("compact, joined products")


def test_a_shape_that_they_do_not_know_falls_back(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    with torch.random.fork_rng():
        folder = save_model(tmp_path, LlamaConfig(**SHAPE))  # heads of 16
    model = opened(folder)
    assert isinstance(model.compute, Compact)
    assert "not a multiple of 32" in model.path


def test_a_model_of_float32_starts_without_numba() -> None:
    """The bundled one: quickstart must not wait for it. Nor do parent and import need it."""
    code = """
        import sys
        import llmserve
        from llmserve.engines.torch.engine import TorchEngine
        assert "numba" not in sys.modules and "torch" not in sys.modules
        from llmserve.engines.torch.options import parse
        from llmserve.engines.torch.model.select_forward import load
        assert str(load(parse({"device": "cpu"})).geometry.dtype) == "torch.float32"
        assert "numba" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_kernels_that_fail_in_a_step_end_its_requests_and_no_later_ones(
    llama: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven, given = drive(llama), prompts(2, 9, seed=6)
    model = driven.runner._model
    monkeypatch.setattr(model, "few", model.few)  # other tests have the same model

    def broken(self: FusedRows, *_: Any) -> torch.Tensor:
        raise RuntimeError("the fused kernels failed: a thread does not come back")

    ask(driven, given, 0)
    driven.step()
    monkeypatch.setattr(FusedRows, "__call__", broken)
    driven.step()
    assert "does not come back" in (driven.end("r0").error or "")
    ask(driven, given, 1)
    driven.finish()
    assert driven.end("r1").finish_reason == "length"


def test_what_a_child_is_busy_with_is_known_to_its_engine() -> None:
    async def main() -> None:
        engine = TorchEngine(sink=lambda _: None, clock=MonotonicClock())
        assert isinstance(engine, ReportsProgress)
        assert engine.busy_with == ""
        engine._run = ProcessClient("torch", "none", lambda _: None, {})
        for what in ("compiling kernels", ""):
            engine._run.child_said(msgspec.msgpack.encode(Busy(what)))
            assert engine.busy_with == what
        await engine.stop()

    asyncio.run(main())


async def collect(engine: TorchEngine, name: str) -> list[Chunk]:
    sampling = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)
    chunks: list[Chunk] = []
    request = Request(id=name, prompt_ids=(5, 6), sampling=sampling, arrival=0.0)
    await engine.generate(request, chunks.append)
    return chunks


def test_a_child_killed_under_load_is_told_and_replaced(llama: Path) -> None:
    """With its threads in the middle of a step."""

    async def main() -> None:
        engine = TorchEngine(
            sink=lambda _: None, clock=MonotonicClock(), threads=2, model=llama,
            dtype="bfloat16", forward="fused",
        )  # fmt: skip
        await engine.start()
        assert "fused" in engine.info.details["forward"]
        assert engine.busy_with == ""
        (pid,) = engine.info.pids
        chunks: list[Chunk] = []
        sampling = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)
        going = asyncio.Event()

        def deliver(chunk: Chunk) -> None:
            chunks.append(chunk)
            going.set()

        asked = Request(id="r", prompt_ids=(5, 6), sampling=sampling, arrival=0.0)
        work = asyncio.create_task(engine.generate(asked, deliver))
        await going.wait()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="SIGKILL"):
            await work
        await engine.start()
        again = await collect(engine, "again")
        before = [token for chunk in chunks for token in chunk.token_ids]
        assert [token for chunk in again for token in chunk.token_ids][: len(before)] == before
        await engine.stop()

    asyncio.run(asyncio.wait_for(main(), 100))
