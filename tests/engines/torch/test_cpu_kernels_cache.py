"""Where compiled kernels are kept, and the threads that run them, without the kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import msgspec
import pytest

from llmserve.engines.torch.cpu_kernels import compile_cache
from llmserve.engines.torch.cpu_kernels.thread_pool import ThreadPool

PATIENCE_S = 20.0


def doubled(value: int) -> int:
    return 2 * value


DOUBLED = f"{__name__}:doubled"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_cache.compiled_in.cache_clear()
    yield tmp_path
    compile_cache.compiled_in.cache_clear()


def taken() -> Path:
    folder = compile_cache.kernel_folder()
    assert folder is not None
    return folder


def anew(folder: Path | None) -> compile_cache.Kernel:
    """As by another process."""
    compile_cache.compiled_in.cache_clear()
    return compile_cache.compiled_in(folder, DOUBLED, 1)


def test_the_folder_is_the_users_alone_and_the_same_each_time(base: Path) -> None:
    folder = taken()
    assert folder.is_relative_to(base)
    assert taken() == folder
    for one in (folder, folder.parent, folder.parent.parent):
        assert one.stat().st_mode & 0o777 == 0o700


def test_without_the_variable_it_is_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert taken().is_relative_to(tmp_path / ".cache" / "llmserve")


def test_a_folder_that_others_can_write_into_is_not_used(base: Path) -> None:
    folder = taken()
    for one in (folder, folder.parent, folder.parent.parent):
        for mode in (0o770, 0o702):
            one.chmod(mode)
            assert compile_cache.kernel_folder() is None
        one.chmod(0o700)
    assert taken() == folder


def test_a_link_in_the_folders_place_is_not_followed(base: Path) -> None:
    elsewhere = base / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (base / "llmserve").symlink_to(elsewhere)
    assert compile_cache.kernel_folder() is None


def test_a_folder_of_another_user_is_not_used(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken()
    monkeypatch.setattr(os, "getuid", lambda: os.stat(base).st_uid + 1)
    assert compile_cache.kernel_folder() is None


def test_where_no_folder_can_be_kernels_are_compiled_and_not_kept(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base / "llmserve").write_text("a file")
    assert compile_cache.kernel_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert compile_cache.kernel_folder() is None
    assert anew(None)(21) == 42
    assert [one.name for one in base.iterdir()] == ["llmserve"]


def test_each_state_of_the_files_and_of_numba_has_its_own_folder(
    base: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path_factory.mktemp("fused")
    for file in Path(compile_cache.__file__).parent.glob("*.py"):
        (package / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(compile_cache, "__file__", str(package / "cache.py"))
    seen = {taken()}
    (package / "vectors.py").write_text("# changed\n")
    seen.add(taken())
    version = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.0" if name == "numba" else version(name)
    )
    seen.add(taken())
    monkeypatch.setenv("NUMBA_OPT", "1")
    seen.add(taken())
    assert len(seen) == 4


def test_old_states_are_forgotten_and_nothing_else(base: Path) -> None:
    folder = taken()
    old = [folder.parent / (str(i) * 40) for i in range(6)]
    for i, one in enumerate(old):
        one.mkdir(mode=0o700)
        os.utime(one, (i, i))
    (folder.parent / "somebody's").mkdir()
    taken()
    left = {one.name for one in folder.parent.iterdir()}
    kept = {one.name for one in old[-compile_cache.OLD_FOLDERS :]}
    assert left == {folder.name, "somebody's", *kept}


def code() -> list[Path]:
    return [one for one in taken().rglob("*") if one.is_file()]


def test_what_was_compiled_is_read_by_the_next_process(base: Path) -> None:
    first = anew(taken())
    assert first(21) == 42
    assert first.compiled
    again = anew(taken())
    assert again(21) == 42
    assert not again.compiled


READ = f"""
import sys
from llmserve.engines.torch.cpu_kernels import compile_cache
kernel = compile_cache.compiled_in(compile_cache.kernel_folder(), {DOUBLED!r}, 1)
print(kernel(21), kernel.compiled, "numba" in sys.modules)
"""


def test_what_is_kept_runs_without_numba_in_a_process_of_its_own(base: Path) -> None:
    anew(taken())
    run = subprocess.run(
        [sys.executable, "-c", READ], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert run.stdout.split() == ["42", "False", "False"]


def flipped(raw: bytes) -> bytes:
    return raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]


@pytest.mark.parametrize(
    "damage",
    [lambda raw: b"", lambda raw: b"rubbish", lambda raw: raw[:-1], flipped],
    ids=["empty", "rubbish", "cut", "one bit"],
)
def test_damaged_files_are_compiled_anew(damage: Callable[[bytes], bytes], base: Path) -> None:
    anew(taken())
    (file,) = code()
    file.write_bytes(damage(file.read_bytes()))
    mended = anew(taken())
    assert mended.compiled
    assert mended(21) == 42
    assert not anew(taken()).compiled


def test_code_that_needs_what_the_process_lacks_is_compiled_anew(base: Path) -> None:
    anew(taken())
    (file,) = code()
    found = compile_cache._read(file)
    assert found is not None
    compile_cache._write(file, msgspec.structs.replace(found, needs=("no_such_name",)))
    assert anew(taken()).compiled
    mended = compile_cache._read(file)
    assert mended is not None
    assert mended.needs == found.needs


def test_without_numba_nothing_kept_is_run(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken()
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match="numba is not installed"):
        compile_cache.kernel_folder()


@pytest.fixture
def pool() -> Iterator[Callable[..., ThreadPool]]:
    made: list[ThreadPool] = []

    def make(
        threads: int, work: Callable[[int], int], patience_s: float = PATIENCE_S
    ) -> ThreadPool:
        made.append(ThreadPool(threads, work, lambda: None, patience_s))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_all_threads_do_their_part_each_time(pool: Callable[..., ThreadPool]) -> None:
    did: list[int] = []

    def work(thread: int) -> int:
        did.append(thread)
        return 0

    many = pool(4, work)
    for _ in range(50):
        many.run()
        assert sorted(did) == [0, 1, 2, 3]
        did.clear()


def test_the_first_failure_is_told_and_told_again(pool: Callable[..., ThreadPool]) -> None:
    def work(thread: int) -> int:
        if thread == 2:
            raise MemoryError("no room")
        return 0

    broken = pool(3, work)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no room") as caught:
            broken.run()
        assert isinstance(caught.value.__cause__, MemoryError)


def test_an_interrupt_reaches_the_caller_and_breaks_the_crew(
    pool: Callable[..., ThreadPool],
) -> None:
    def work(thread: int) -> int:
        if thread == 0:
            raise KeyboardInterrupt
        return 0

    broken = pool(2, work)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    with pytest.raises(RuntimeError):
        broken.run()


def test_a_thread_that_does_not_come_back_is_given_up(pool: Callable[..., ThreadPool]) -> None:
    release = threading.Event()
    stuck = pool(2, lambda thread: 0 if thread == 0 or release.wait() else 1, 0.05)
    with pytest.raises(RuntimeError, match="does not come back"):
        stuck.run()
    release.set()


def test_a_crew_that_cannot_be_complete_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, before = threading.Thread.start, {*threading.enumerate()}

    def scarce(thread: threading.Thread) -> None:
        if thread.name == "fused-3":
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    with pytest.raises(RuntimeError, match="new thread"):
        ThreadPool(5, lambda thread: 0, lambda: None, PATIENCE_S)
    assert {*threading.enumerate()} <= before


def test_a_stopped_crew_has_no_threads_and_runs_no_more(pool: Callable[..., ThreadPool]) -> None:
    done = pool(3, lambda thread: 0)
    done.run()
    done.stop()
    assert not any(thread.is_alive() for thread in done._threads)
    with pytest.raises(RuntimeError, match="stopped"):
        done.run()
    done.stop()
