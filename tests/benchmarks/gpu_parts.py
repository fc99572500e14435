"""The parts of the GPU check, each run in a process of its own by `gpu_check.py`.

    cd tests && python -m benchmarks.gpu_parts NAME --device cpu --results FILE

On a CPU each takes settings that end in seconds, and runs the same lines.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_results import NotPossible, Results

ROOT = Path(__file__).parents[2]
TOLERATED = 64 << 20
"""Bytes that may be missing after closing; the driver's own books move by less."""


@dataclass(frozen=True)
class Place:
    """Where it runs; `tiny` settings on a CPU."""

    device: str

    @property
    def tiny(self) -> bool:
        return self.device == "cpu"

    @property
    def how(self) -> dict[str, str]:
        """On a CPU the form that needs no kernels to be compiled first."""
        return {
            "dtype": "float32" if self.tiny else "bfloat16",
            "forward": "compact" if self.tiny else "auto",
        }


def machine(place: Place, results: Results) -> None:
    """In words that name no one: what a reader needs to weigh the figures."""
    import psutil
    import torch
    import transformers

    with results.check("machine") as said:
        cores, gib = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 2**30
        host = f"{cores} CPU cores, {gib:.0f} GiB"
        versions = [
            f"Python {sys.version.split()[0]}", f"torch {torch.__version__}",
            f"transformers {transformers.__version__}", *_versions("vllm"),
        ]  # fmt: skip
        if place.tiny:
            said.append(f"{host}, no GPU used, {', '.join(versions)}")
            return
        if not torch.cuda.is_available():
            raise NotPossible("torch finds no CUDA device here")
        card = torch.cuda.get_device_properties(0)
        count, cuda = torch.cuda.device_count(), torch.version.cuda
        said.append(
            f"{count} × {card.name} ({card.total_memory / 2**30:.0f} GiB, compute capability "
            f"{card.major}.{card.minor}), driver {_driver()}, CUDA {cuda}, {host}, "
            f"{', '.join(versions)}, {time.strftime('%Y-%m-%d')}"
        )


def _versions(name: str) -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return [f"{name} {version(name)}"]
    except PackageNotFoundError:
        return []


def _driver() -> str:
    import pynvml

    try:
        pynvml.nvmlInit()
        found = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError as error:
        return f"unknown ({error})"
    return found.decode() if isinstance(found, bytes) else str(found)


def torch_engine(place: Place, results: Results) -> None:
    from transformers import LlamaConfig

    from benchmarks.gpu_torch import SpeedTable, driven, graphs_of, memory_speed, unequal
    from support.tiny_models import SHAPE, save_model

    rows, new = (3, 8) if place.tiny else (11, 64)
    with tempfile.TemporaryDirectory() as folder:
        llama = save_model(Path(folder), LlamaConfig(**SHAPE))
        recorded = {}
        for forward in ("compact", "general"):
            with results.check(f"replies of the {forward} form equal generate's") as said:
                one = driven(llama, device=place.device, graphs=True, forward=forward)
                wrong = unequal(one, llama, place.device, rows, new)
                recorded[forward] = graphs_of(one)
                said.append(f"{rows - len(wrong)} of {rows} replies of {new} tokens, float32")
                assert not wrong, f"other tokens for prompts {wrong}"
        with results.check("decode steps are recorded as graphs") as said:
            said.append(", ".join(f"{form} {n}" for form, n in recorded.items()))
            said += ["run again, not recorded: there is no CUDA here"] if place.tiny else []
            assert min(recorded.values()) > 0, "none was recorded"
    with (
        results.check("tokens/s beside generate and the memory's speed") as said,
        tempfile.TemporaryDirectory() as folder,
    ):
        name, most = ("4M", 1 << 20) if place.tiny else ("235M", 1 << 29)
        read = memory_speed(place.device, most)
        table = SpeedTable(Path(folder), name, place.device, new=new, read_speed=read, **place.how)
        said.append(f"{name} {place.how['dtype']}, {read / 1e9:,.1f} GB/s read")
        for rows in (1, 2) if place.tiny else (1, 8, 32):
            found = table.row(rows, range(1 if place.tiny else 3))
            share = found["recorded"] / (rows * table.steps_per_s)
            speeds = ", ".join(f"{way} {speed:,.0f}" for way, speed in found.items())
            said.append(f"{rows} at once: {speeds} tokens/s ({share:.0%} of the memory's)")


def memory(place: Place, results: Results) -> None:
    import llmserve
    from llmserve.core.clock import MonotonicClock
    from llmserve.entrypoints.session.shutdown_report import device_used
    from llmserve.observe.gpu import DeviceSampler

    with results.check("NVML finds the GPU") as said:
        sampler = DeviceSampler(lambda: (os.getpid(),), MonotonicClock())
        try:
            samples = sampler.sample()
        finally:
            sampler.close()
        if place.tiny and samples[0].kind == "host":
            raise NotPossible(f"no NVIDIA driver: {samples[0].name} is shown in its place")
        for one in samples:
            gib = one.total_bytes / 2**30
            said.append(f"{one.name}, {gib:.0f} GiB, {one.power_w} W, {one.temperature_c} °C")
        assert {one.kind for one in samples} == {"gpu"}, "NVML tells of no GPU"
        assert all(0 < one.used_bytes <= one.total_bytes for one in samples)
    with results.check("closing gives the memory back") as said:
        before = device_used()
        options: dict[str, Any] = {
            **place.how,
            "device": place.device,
            "kv_cache_memory_bytes": 1 << 24 if place.tiny else 1 << 30,
        }
        with llmserve.serve(engine="torch", **options) as session:
            assert session.generate("hello", max_tokens=8, temperature=0.0)
            during = device_used()
            report = session.close()
        after = device_used()
        said.append(str(report).splitlines()[0])
        assert not report.left, f"processes {report.left} are still there"
        if not place.tiny:
            assert before is not None, "NVML tells no figure of the device"
            assert during is not None
            assert after is not None
            used = " → ".join(f"{size >> 20:,}" for size in (before, during, after))
            said.append(f"device memory in use: {used} MiB")
            assert during > before, "serving took no device memory"
            assert after < before + TOLERATED, "device memory stayed in use"


def front(place: Place, results: Results) -> None:
    from benchmarks.gpu_front import over_simulator, over_torch

    with results.check("the front at a GPU's pace, simulated") as said:
        said.append(over_simulator(streams=8 if place.tiny else 256, new=16 if place.tiny else 128))
    with results.check("the front over the torch engine") as said:
        name, streams, new = ("4M", 4, 8) if place.tiny else ("235M", 32, 256)
        said.append(over_torch(name, streams, new, device=place.device, **place.how))


def tests(place: Place, results: Results) -> None:
    with results.check("the tests marked gpu") as said:
        said.append(
            run_tests("gpu", "tests/engines/torch/test_torch_gpu.py", "tests/observe/test_gpu.py")
        )


def vllm_tests(place: Place, results: Results) -> None:
    with results.check("vLLM's tests marked gpu") as said:
        said.append(run_tests("vllm and gpu", "tests/engines/vllm/test_vllm_gpu.py"))


def run_tests(marked: str, *paths: str) -> str:
    """What pytest's summary says. NotPossible where it leaves all out for want of a GPU; an
    AssertionError names the first test that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable, "-m", "pytest", "-q", "-m", marked, "-p", "no:cacheprovider",
            f"--junitxml={report}", *paths,
        ]  # fmt: skip
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        print(ran.stdout, ran.stderr, sep="\n", flush=True)
        lines = ran.stdout.strip().splitlines() or [ran.stderr.strip()[-300:]]
        summary = re.sub(r"=+ ?| in [\d.]+s.*", "", lines[-1]).strip()
        cases = [] if not report.exists() else list(ET.parse(report).iter("testcase"))
    if not cases and ran.returncode == 5:
        raise NotPossible(f"no GPU for pytest here: {summary}")
    bad = [one.get("name") for one in cases if {"failure", "error"} & {child.tag for child in one}]
    assert ran.returncode == 0, f"{summary}; first: {bad[0] if bad else 'none was run'}"
    why = [str(one.get("message")) for case in cases for one in case.iter("skipped")]
    return "; ".join([summary, *(f"skipped: {one}" for one in why)])


def vllm_sleep(place: Place, results: Results) -> None:
    import llmserve
    from llmserve.entrypoints.session.shutdown_report import device_used
    from support.small_vllm import OPTIONS

    options = OPTIONS | {"enforce_eager": True, "enable_sleep_mode": not place.tiny}
    with llmserve.serve(engine="vllm", **options) as session:
        before = session.generate("hello", max_tokens=8, temperature=0.0)
        for level in (1, 2):
            with results.check(f"vLLM sleeps at level {level}") as said:
                held, start = device_used(), time.monotonic()
                sentence = session.sleep(level)
                asleep, slept = device_used(), time.monotonic()
                session.wake()
                woke = time.monotonic()
                said.append(f"asleep in {slept - start:.1f} s, awake in {woke - slept:.1f} s")
                said.append(sentence)
                after = session.generate("hello", max_tokens=8, temperature=0.0)
                assert after == before, "it says something else after it woke"
                if not place.tiny:
                    assert held is not None, "NVML tells no figure of the device"
                    assert asleep is not None
                    said.append(f"{(held - asleep) >> 20:,} MiB of device memory freed")
                    assert asleep < held - OPTIONS["kv_cache_memory_bytes"] / 2


def vllm_bench(place: Place, results: Results) -> None:
    concurrency, blocks = ("8", "1") if place.tiny else ("32", "5")
    with results.check("our endpoint against vllm serve") as said:
        command = [
            sys.executable, "-m", "benchmarks.vllm_server", "--concurrency", concurrency,
            "--blocks", blocks,
        ]  # fmt: skip
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        print(ran.stdout, ran.stderr, sep="\n", flush=True)
        wanted = ("throughput, ours", "added TTFT", "CPU of the answering")
        said += [line.strip() for line in ran.stdout.splitlines() if line.startswith(wanted)]
        assert ran.returncode == 0, (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]


PARTS: dict[str, Callable[[Place, Results], None]] = {
    "machine": machine, "torch": torch_engine, "memory": memory, "tests": tests, "front": front,
    "vllm_sleep": vllm_sleep, "vllm_tests": vllm_tests, "vllm_bench": vllm_bench,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*PARTS])
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--results", type=Path, required=True)
    asked = parser.parse_args()
    PARTS[asked.name](Place(asked.device), Results(asked.results))


if __name__ == "__main__":
    main()
