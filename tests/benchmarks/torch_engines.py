"""The columns of the table: each runs a block of requests and says how long it took.

`open_columns` gives those that start, and for the others the reason why not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from llmserve.core.clock import MonotonicClock
from llmserve.core.types import Chunk, Request, SamplingParams
from llmserve.engines.torch.engine import TorchEngine

START_S = 180.0
VLLM_PYTHON = Path(__file__).parents[2] / ".venv-vllm/bin/python"


@dataclass(frozen=True)
class Setting:
    folder: Path
    threads: int
    dtype: str = "bfloat16"
    gguf: Path | None = None
    llama_server: Path | None = None


class Column(Protocol):
    async def start(self, setting: Setting) -> None: ...
    async def block(self, prompts: list[list[int]], new: int) -> float:
        """Seconds that all of them took together."""
        ...

    async def stop(self) -> None: ...


@dataclass
class Ours:
    """The torch engine through its child process and the loop."""

    options: dict[str, Any] = field(default_factory=dict)
    engine: TorchEngine | None = None
    blocks: int = 0

    async def start(self, setting: Setting) -> None:
        told = {
            "model": str(setting.folder), "threads": setting.threads, "dtype": setting.dtype,
            "enable_prefix_caching": False,  # the same prompts come in every block
        }
        self.engine = TorchEngine(
            sink=lambda _: None, clock=MonotonicClock(), **told | self.options
        )
        await self.engine.start()

    async def block(self, prompts: list[list[int]], new: int) -> float:
        assert self.engine is not None
        engine, self.blocks = self.engine, self.blocks + 1

        async def one(i: int, prompt: list[int]) -> int:
            sampling = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True)
            name = f"{self.blocks}-{i}"
            request = Request(id=name, prompt_ids=tuple(prompt), sampling=sampling, arrival=0)
            chunks: list[Chunk] = []
            await engine.generate(request, chunks.append)
            return sum(len(chunk.token_ids) for chunk in chunks)

        start = time.perf_counter()
        counts = await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts)))
        assert counts == [new] * len(prompts)
        return time.perf_counter() - start

    async def stop(self) -> None:
        if self.engine is not None:
            await self.engine.stop()


@dataclass
class Rival:
    """An engine in `torch_rival.py`."""

    kind: str
    python: str = sys.executable
    """For vllm that of a venv which `make vllm-cpu` builds."""
    process: asyncio.subprocess.Process | None = None
    log: Any = None

    async def start(self, setting: Setting) -> None:
        threads = str(setting.threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TQDM_DISABLE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # closed in stop
        self.process = await asyncio.create_subprocess_exec(
            self.python, "-W", "ignore", str(Path(__file__).with_name("torch_rival.py")),
            self.kind, str(setting.folder), threads, setting.dtype,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment,
            start_new_session=True,
        )  # fmt: skip
        await asyncio.wait_for(self._answer(), START_S)

    async def _answer(self) -> Any:
        assert self.process is not None
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise OSError(self.log.read().decode(errors="replace").strip().splitlines()[-1])
        return json.loads(line)

    async def ask(self, **what: Any) -> float:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what).encode() + b"\n")
        told: float = await self._answer()
        return told

    async def block(self, prompts: list[list[int]], new: int) -> float:
        return await self.ask(prompts=prompts, new=new)

    async def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # vLLM's own processes too
            await self.process.wait()
        if self.log is not None:
            self.log.close()


@dataclass
class Llama:
    """llama-server over HTTP, whole replies."""

    process: asyncio.subprocess.Process | None = None
    session: aiohttp.ClientSession | None = None
    url: str = ""

    async def start(self, setting: Setting) -> None:
        if setting.llama_server is None:
            raise OSError("no --llama-server")
        if setting.gguf is None:
            raise OSError("the gguf package is missing: pip install gguf, or --gguf-library")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        threads = str(setting.threads)
        self.process = await asyncio.create_subprocess_exec(
            str(setting.llama_server), "-m", str(setting.gguf), "-t", threads, "-tb", threads,
            "-np", "32", "-c", str(32 * 256), "--host", "127.0.0.1", "--port", str(port),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{port}"
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64))
        deadline = time.monotonic() + START_S
        while not await self._healthy():
            if self.process.returncode is not None or time.monotonic() > deadline:
                raise OSError("llama-server did not start")
            await asyncio.sleep(0.2)

    async def _healthy(self) -> bool:
        assert self.session is not None
        try:
            async with self.session.get(self.url + "/health") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def block(self, prompts: list[list[int]], new: int) -> float:
        assert self.session is not None
        session = self.session

        async def one(prompt: list[int]) -> int:
            asked = {
                "prompt": prompt, "n_predict": new, "temperature": 0, "ignore_eos": True,
                "cache_prompt": False,
            }  # fmt: skip
            async with session.post(self.url + "/completion", json=asked) as answer:
                told = await answer.json()
                return int(told["tokens_predicted"])

        start = time.perf_counter()
        counts = await asyncio.gather(*map(one, prompts))
        assert counts == [new] * len(prompts), counts
        return time.perf_counter() - start

    async def stop(self) -> None:
        if self.session is not None:
            await self.session.close()
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


def known() -> dict[str, Column]:
    return {
        "ours": Ours(),
        "ours-compact": Ours({"forward": "compact"}),
        "ours-active": Ours({"omp_wait_policy": "active"}),
        "ours-general": Ours({"forward": "general"}),
        "ours-float32": Ours({"dtype": "float32"}),
        "ours-int8": Ours({"quantization": "int8"}),
        "generate": Rival("generate"),
        "batching": Rival("batching"),
        "vllm": Rival("vllm", str(VLLM_PYTHON)),
        "llama": Llama(),
    }


async def open_columns(wanted: list[str], setting: Setting) -> dict[str, Column]:
    """Those that start; says why another does not."""
    found: dict[str, Column] = {}
    for name in wanted:
        column = known()[name]
        try:
            await column.start(setting)
        except (OSError, TimeoutError, TypeError, RuntimeError, ValueError) as error:
            print(f"  without {name}: {error}")
            await column.stop()
        else:
            found[name] = column
    return found
