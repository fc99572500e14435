"""A start by a kept proof: the same replies without transformers, where nothing has changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmserve.core.knobs import Knobs
from llmserve.engines.batching.step_planner import StepPlanner
from llmserve.engines.torch.kv.store import KvStore
from llmserve.engines.torch.model import loading, proof_store, race
from llmserve.engines.torch.model import open_model as opening
from llmserve.engines.torch.model.attention import UnsupportedModel
from llmserve.engines.torch.model.flat_model import FlatModel
from llmserve.engines.torch.model.open_model import OpenedModel, open_model
from llmserve.engines.torch.model.proof_store import FormProof, ProofStore, state_of
from llmserve.engines.torch.model.verify import Stretch, after
from llmserve.engines.torch.options import TorchOptions, parse
from llmserve.engines.torch.step_loop import StepLoop
from llmserve.engines.torch.text.detokenize import Detokenizer
from llmserve.engines.torch.text.tokenizer import open_tokenizer
from support.tiny_models import SHAPE, Driven, greedy, save_model, words

LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's, and empty."""
    base = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(base))
    return base


@pytest.fixture
def model(llama: Path, tmp_path: Path) -> Path:
    """A copy of its own."""
    return shutil.copytree(llama, tmp_path / "model")


@pytest.fixture
def proved(monkeypatch: pytest.MonkeyPatch) -> list[TorchOptions]:
    """One entry for each model that transformers' code was asked for."""
    seen: list[TorchOptions] = []
    read = loading.read

    def noted(options: TorchOptions) -> Any:
        seen.append(options)
        return read(options)

    monkeypatch.setattr(opening, "read", noted)
    return seen


def given(folder: Path, **options: object) -> TorchOptions:
    return parse({"model": folder, "dtype": "float32", "device": "cpu", "threads": 1, **options})


def opened(folder: Path, **options: object) -> OpenedModel:
    return open_model(given(folder, **options))


def proofs(cache: Path) -> list[Path]:
    return sorted((cache / "llmserve" / "proofs").glob("*"))


def logits(model: FlatModel) -> torch.Tensor:
    ids = [*words(20, seed=3)]
    return after(model, KvStore(model.geometry), [Stretch("one", ids, 0, len(ids))])


def replies(model: FlatModel, folder: Path, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    planner = StepPlanner(
        kv_blocks=4096, block_size=4, max_model_len=model.max_model_len, prefix_caching=True
    )
    detokenizer = Detokenizer(open_tokenizer(folder).backend)
    kv = KvStore(model.geometry)
    driven = Driven(StepLoop(model, detokenizer, planner, Knobs(), seed=1, kv=kv))
    for i, prompt in enumerate(prompts):
        driven.submit(str(i), prompt, max_tokens=16, temperature=0)
        driven.step()
    driven.finish()
    return [driven.tokens(str(i)) for i in range(len(prompts))]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}),
        ("LlamaConfig", {"intermediate_size": 77, "tie_word_embeddings": True}),
        ("MistralConfig", {"sliding_window": None}),
        ("Qwen2Config", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
        ("Qwen3Config", {"head_dim": 16}),
    ],
)
def test_a_kept_proof_gives_the_same_model_without_transformers(
    kind: str, changes: dict[str, Any], tmp_path: Path, proved: list[TorchOptions]
) -> None:
    import transformers

    config = getattr(transformers, kind)(**SHAPE | changes)
    with torch.random.fork_rng():
        folder = save_model(tmp_path / "made", config)
    first, second = opened(folder), opened(folder)
    assert len(proved) == 1
    assert first.proof.endswith("kept for the next one")
    assert second.proof.startswith("kept from an earlier start")
    assert second.model.network is None
    for name in (
        "path", "parameters", "geometry", "max_model_len", "vocab_size", "eos_ids", "architecture",
        "most_few",
    ):  # fmt: skip
        assert getattr(first.model, name) == getattr(second.model, name), name
    assert torch.equal(logits(first.model), logits(second.model))
    prompts = [words(5 + 9 * i, seed=i) for i in range(4)]
    assert replies(second.model, folder, prompts) == [
        greedy(folder, prompt, 16) for prompt in prompts
    ]


def test_weights_in_several_files_are_read_too(tmp_path: Path, proved: list[TorchOptions]) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.random.fork_rng():
        whole = save_model(tmp_path / "whole", LlamaConfig(**SHAPE))
    parts = shutil.copytree(whole, tmp_path / "parts")
    (parts / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(parts, max_shard_size="100KB")
    assert len([*parts.glob("*.safetensors")]) > 1
    first, second = opened(parts), opened(parts)
    assert len(proved) == 1
    assert torch.equal(logits(first.model), logits(second.model))


def in_a_fresh_process(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )


PREPARE = """
    import sys
    from llmserve.core.knobs import Knobs
    from llmserve.engines.torch import worker
    from llmserve.engines.torch.messages import LoadModel
    from llmserve.engines.torch.model.open_model import open_model
    from llmserve.engines.torch.options import parse
    options = parse({"threads": 1, "device": "cpu"})
    made = open_model(options).proof
    message = LoadModel(options, Knobs().as_dict())
    _, ready, _ = worker.prepare(message, lambda _: None)
    assert ready.details["proof"].startswith("kept from an earlier start")
    print(made)
    print("transformers" in sys.modules, "numba" in sys.modules)
"""


@pytest.mark.timeout(400)  # three real starts
def test_two_first_starts_at_once_and_then_one_without_transformers(cache: Path) -> None:
    """Of the bundled model, by the engine's process."""
    both = [in_a_fresh_process(PREPARE) for _ in range(2)]
    for one in both:
        said, _ = one.communicate()
        assert one.returncode == 0
        assert "made at this start" in said
    assert len(proofs(cache)) == 1, "what one writes is in the way of the other"
    later = in_a_fresh_process(PREPARE)
    said, _ = later.communicate()
    proof, imported = said.splitlines()
    assert proof.startswith("kept from an earlier start")
    assert imported == "False False"


def other_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] += 1e-3
    kept = path.stat()
    save_file(tensors, path, {"format": "pt"})
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))


def other_json(name: str, **changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def another_file(folder: Path) -> None:
    (folder / "adapter_config.json.bak").write_text("{}")


@pytest.mark.parametrize(
    "change",
    [
        other_weights,
        other_json("config.json", rms_norm_eps=1e-4),
        other_json("config.json", max_position_embeddings=256),
        other_json("generation_config.json", eos_token_id=5),
        another_file,
    ],
)
def test_another_content_of_the_folder_is_proven_anew(
    change: Callable[[Path], None], model: Path, proved: list[TorchOptions]
) -> None:
    opened(model)
    opened(model)
    assert len(proved) == 1
    change(model)
    for _ in range(2):
        found = opened(model)
    assert len(proved) == 2, "proven once for each content"
    if change is not another_file:
        fresh = opened(model, seed=3)
        assert fresh.model.eos_ids == found.model.eos_ids
    assert found.proof.startswith("kept")


@pytest.mark.parametrize(
    "option",
    [
        {"dtype": "bfloat16"}, {"dtype": "auto"}, {"max_model_len": 128}, {"threads": 2},
        {"forward": "compact"}, {"quantization": "int8"}, {"omp_wait_policy": "passive"},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_the_forward_pass_depends_on_have_their_own_proof(
    option: dict[str, object], model: Path
) -> None:
    assert state_of(model, given(model, **option)) != state_of(model, given(model))


def test_every_option_is_told_apart_but_those_that_no_form_depends_on(model: Path) -> None:
    """A new option counts until somebody says that it does not."""
    plain = given(model)
    others: dict[str, object] = {
        "model": model, "revision": "other", "seed": 7, "block_size": 32,
        "kv_cache_memory_bytes": 1 << 30, "kv_capacity_tokens": 4096, "max_num_seqs_ceiling": 9,
        "max_num_batched_tokens_ceiling": 99, "enable_prefix_caching": False,
    }  # fmt: skip
    assert others.keys() == proof_store.BESIDE
    assert state_of(model, given(model, **others)) == state_of(model, plain)
    for name in TorchOptions.__struct_fields__:
        if name not in proof_store.BESIDE:
            changed = msgspec.structs.replace(plain, **{name: "something else"})
            if name != "threads":
                assert state_of(model, changed) != state_of(model, plain), name


def changed_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = shutil.copytree(proof_store.PACKAGE, tmp_path / "package")
    monkeypatch.setattr(proof_store, "PACKAGE", package)
    with (package / "model" / "compact_llama.py").open("a") as file:
        file.write("# changed\n")


def other_version(real: Callable[[str], str], other: str, library: str) -> str:
    return "0" if library == other else real(library)


def set_version_of(version_of: Callable[[str], str], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(proof_store, "version_of", version_of)


def set_environment(name: str, patch: pytest.MonkeyPatch) -> None:
    patch.setenv(name, "another")


def test_every_part_of_the_machine_and_of_the_code_is_told_apart(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [state_of(model, given(model))]

    def with_changed(change: Callable[[pytest.MonkeyPatch], object]) -> None:
        with monkeypatch.context() as patch:
            change(patch)
            seen.append(state_of(model, given(model)))

    real = proof_store.version_of
    for library in proof_store.LIBRARIES:
        version = partial(other_version, real, library)
        with_changed(partial(set_version_of, version))
    with_changed(lambda patch: patch.setattr(torch, "__version__", "0"))
    with_changed(lambda patch: patch.setattr(torch.version, "git_version", "0"))
    with_changed(lambda patch: patch.setattr("llmserve.__version__", "0"))
    with_changed(lambda patch: patch.setattr(sys, "version", "0"))
    with_changed(lambda patch: patch.setattr(proof_store, "cpu", lambda: "another"))
    with_changed(
        lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    )
    names = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_CBWR", "NUMBA_CPU_NAME")
    for name in (*names, "LLMSERVE_CPU_ISA"):
        with_changed(partial(set_environment, name))
    with_changed(lambda patch: changed_source(patch, tmp_path))
    assert len(set(seen)) == len(seen)
    assert state_of(model, given(model)) == seen[0]


def test_a_cpu_is_told_by_its_instruction_sets() -> None:
    told = proof_store.cpu()
    assert told
    if Path("/proc/cpuinfo").exists():
        assert "MHz" not in told
        assert any(word in told for word in ("flags", "Features", "isa"))


def test_a_large_file_is_told_by_its_time_and_samples(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof_store, "WHOLE_BYTES", 1 << 10)
    monkeypatch.setattr(proof_store, "SAMPLE_BYTES", 1 << 8)
    weights, before = model / "model.safetensors", state_of(model, given(model))
    assert state_of(model, given(model)) == before
    os.utime(weights, ns=(1, 1))
    later = state_of(model, given(model))
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    os.utime(weights, ns=(1, 1))
    assert len({before, later, state_of(model, given(model))}) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:10],
        lambda raw: raw[:-1],
        lambda raw: b"rubbish" * 100,
        lambda raw: raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:],
    ],
    ids=["empty", "short", "cut", "rubbish", "one bit"],
)
def test_a_damaged_proof_is_replaced(
    damage: Callable[[bytes], bytes], llama: Path, cache: Path, proved: list[TorchOptions]
) -> None:
    opened(llama)
    (file,) = proofs(cache)
    good = file.read_bytes()
    file.write_bytes(damage(good))
    assert "made at this start" in opened(llama).proof
    assert proofs(cache) == [file]
    assert opened(llama).proof.startswith("kept from")
    assert len(proved) == 2


def test_a_proof_that_another_could_have_written_is_not_taken(
    llama: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(llama)
    (file,) = proofs(cache)
    store = ProofStore(file.parent, file.stem)
    assert store.find() is not None
    for mode in (0o620, 0o602):
        file.chmod(mode)
        assert store.find() is None
    file.chmod(0o600)
    moved = file.rename(cache / "elsewhere")
    file.symlink_to(moved)
    assert store.find() is None, "it follows a link"
    assert "made at this start" in opened(llama).proof
    assert not file.is_symlink()
    assert store.find() is not None
    monkeypatch.setattr(os, "getuid", lambda: os.stat(cache).st_uid + 1)
    assert store.find() is None


def test_a_proof_is_its_users_alone(llama: Path, cache: Path) -> None:
    opened(llama)
    (file,) = proofs(cache)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_where_no_folder_is_safe_nothing_is_kept_and_the_model_runs(
    llama: Path, cache: Path, proved: list[TorchOptions]
) -> None:
    cache.mkdir()
    (cache / "llmserve").write_text("a file")
    for _ in range(2):
        found = opened(llama)
        assert "not kept: the user's cache" in found.proof
        assert replies(found.model, llama, [words(5, 1)]) == [greedy(llama, words(5, 1), 16)]
    assert len(proved) == 2


def other_logits(proof: FormProof) -> FormProof:
    longer = torch.frombuffer(bytearray(proof.logits[0]), dtype=torch.float32) * 1.01
    return msgspec.structs.replace(proof, logits=(longer.numpy().tobytes(), proof.logits[1]))


def other_facts(**changes: object) -> Callable[[FormProof], FormProof]:
    def change(proof: FormProof) -> FormProof:
        return msgspec.structs.replace(proof, facts=msgspec.structs.replace(proof.facts, **changes))

    return change


@pytest.mark.parametrize(
    "change",
    [
        other_logits,
        other_facts(eps=0.1),
        other_facts(scaling=0.9),
        other_facts(layers=2),
        other_facts(layers=4),
        other_facts(heads=2),
        other_facts(tied=True),
        other_facts(vocab_size=319),
        other_facts(frequencies=(1.0,) * 8),
        lambda proof: msgspec.structs.replace(proof, form="fused"),
        lambda proof: msgspec.structs.replace(proof, logits=proof.logits[:1]),
    ],
)  # fmt: skip
def test_a_wrong_proof_under_the_right_name_is_found_out_and_replaced(
    change: Callable[[FormProof], FormProof], llama: Path, proved: list[TorchOptions]
) -> None:
    """A kept proof is compared again at each start, so the name alone is not trusted."""
    opened(llama)
    store = ProofStore.of(llama, given(llama))
    assert store is not None
    good = store.find()
    assert good is not None
    assert store.keep(change(good))
    found = opened(llama)
    assert "made at this start" in found.proof
    assert len(proved) == 2
    again = store.find()
    assert again is not None
    assert msgspec.structs.replace(again, took_s=0) == msgspec.structs.replace(good, took_s=0)


def test_a_form_that_comes_out_wrong_now_is_not_taken_by_a_proof_of_then(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmserve.engines.torch.model import compact_llama

    opened(llama)
    monkeypatch.setattr(compact_llama, "silu", torch.nn.functional.gelu)
    found = opened(llama)
    assert found.proof == "made at each start"
    assert "transformers' modelling code" in found.model.path
    with pytest.raises(UnsupportedModel, match="compact form fails: its logits come out"):
        opened(llama, forward="compact")


def test_int8_is_kept_with_what_it_moves(llama: Path, proved: list[TorchOptions]) -> None:
    first, second = (opened(llama, quantization="int8") for _ in range(2))
    assert len(proved) == 1
    assert re.search(r"int8 (by halves, as without VNNI \(.*\) )?\(logits", first.model.path)
    assert first.model.path == second.model.path
    assert torch.equal(logits(first.model), logits(second.model))


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Of widths that the kernels of our own take."""
    from transformers import LlamaConfig

    with torch.random.fork_rng():
        config = LlamaConfig(**SHAPE | {"head_dim": 32, "initializer_range": 0.1})
        return save_model(tmp_path / "wide", config)


@pytest.mark.parametrize("most", [inf, 128])
def test_the_kernels_race_once(
    most: float, wide: Path, tmp_path: Path, proved: list[TorchOptions],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    raced: list[int] = []

    def seconds(model: FlatModel, kv: KvStore, step: list[Stretch]) -> float:
        rows = sum(one.end - one.start for one in step)
        raced.append(rows)
        slow = rows == 128 and most == 128
        return 1.0 if model.few is None else 2.0 if slow else 0.5

    monkeypatch.setattr(race, "seconds", seconds)
    monkeypatch.delenv("XDG_CACHE_HOME")  # compiled kernels are those of all tests
    folder = tmp_path / "proofs"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(proof_store, "cache_folder", lambda *_: folder)
    first = opened(wide, dtype="bfloat16")
    assert raced
    raced.clear()
    second = opened(wide, dtype="bfloat16")
    assert (len(proved), raced) == (1, [])
    assert first.model.path == second.model.path
    assert first.model.path.startswith("fused")
    assert first.model.most_few == second.model.most_few == most
    assert torch.equal(logits(first.model), logits(second.model))


def test_a_kind_without_a_direct_form_is_proven_at_each_start(
    tmp_path: Path, cache: Path, proved: list[TorchOptions]
) -> None:
    from transformers import GPT2Config

    folder = save_model(tmp_path / "gpt2", GPT2Config(**SHAPE))
    for _ in range(2):
        assert opened(folder).proof == "made at each start"
    assert len(proved) == 2
    assert not proofs(cache)


@pytest.mark.parametrize("forward", ["general", "plain"])
def test_forms_of_transformers_network_are_proven_at_each_start(
    forward: str, llama: Path, cache: Path
) -> None:
    assert opened(llama, forward=forward).proof == "made at each start"
    assert not proofs(cache)


def test_weights_that_transformers_reads_otherwise_are_proven_at_each_start(
    llama: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = loading.read

    def otherwise(options: TorchOptions) -> Any:
        model, expected = read(options)
        with torch.no_grad():
            model.network.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
        return model, expected

    monkeypatch.setattr(opening, "read", otherwise)
    assert opened(llama).proof == "made at each start"
    assert not proofs(cache)


def test_the_latest_used_proofs_stay(
    llama: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof_store, "MOST_KEPT", 2)
    opened(llama)
    (mine,) = proofs(cache)
    for i in range(4):
        old = mine.with_name(f"{i:040x}.proof")
        old.write_bytes(b"")
        os.utime(old, (i, i))
    (mine.parent / "somebody's").write_text("")
    opened(llama, max_model_len=100)
    left = {one.name for one in proofs(cache)}
    assert {"somebody's", mine.name, f"{3:040x}.proof"} < left
    assert len(left) == 4


LAUNCHED = """
    import asyncio, sys
    from llmserve.core.clock import MonotonicClock
    from llmserve.engines.base import Launches
    from llmserve.engines.torch.engine import TorchEngine

    async def main():
        engine = TorchEngine(sink=lambda _: None, clock=MonotonicClock(), threads=1, device="cpu")
        assert isinstance(engine, Launches)
        await engine.launch()
        first = engine._run
        await engine.start()
        print(engine._run is first, len(engine.tokenizer.encode("hi")) > 0)
        await engine.stop()
        await engine.launch()
        await engine.stop()
        print(engine._run is None)

    asyncio.run(main())
"""


def test_a_start_goes_on_with_the_process_that_was_launched(cache: Path) -> None:
    run = in_a_fresh_process(LAUNCHED)
    said, _ = run.communicate()
    assert run.returncode == 0
    assert said.split() == ["True", "True", "True"]


def test_a_second_start_compares_in_one_step_of_each_kind(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    forward = FlatModel.forward

    def counted(model: FlatModel, batch: Any, tokens: list[int], wanted: list[int]) -> Any:
        steps.append(len(tokens))
        return forward(model, batch, tokens, wanted)

    opened(llama)
    monkeypatch.setattr(FlatModel, "forward", counted)
    assert opened(llama).proof.startswith("kept")
    assert len(steps) == 2
    assert steps[1] == 2, "the second is of decodes"
