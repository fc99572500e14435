"""What engines can do is asked in one way, and the registry is the only list of them."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import llmserve
from llmserve.core.clock import MonotonicClock
from llmserve.core.types import ParamError, Structured
from llmserve.engines import base, registry
from llmserve.engines.base import ABILITIES, abilities

if TYPE_CHECKING:  # `isinstance` compares names alone; that what they take fits, mypy checks here
    from llmserve.engines.simulator.engine import SimulatorEngine
    from llmserve.engines.simulator.process_engine import SimulatorProcess
    from llmserve.engines.torch.engine import TorchEngine
    from llmserve.engines.vllm.engine import VllmEngine
    from support.toy_engine.engine import ToyEngine

    def fits_vllm(
        one: VllmEngine,
    ) -> tuple[
        base.Engine, base.Sleeps, base.Pauses, base.Evicts, base.CachesPrefixes,
        base.ChecksSchemas, base.Counts, base.HasApi,
    ]:  # fmt: skip
        return one, one, one, one, one, one, one, one

    def fits_torch(
        one: TorchEngine,
    ) -> tuple[
        base.Engine, base.CachesPrefixes, base.ChecksSchemas, base.Counts, base.ReportsProgress
    ]:
        return one, one, one, one, one

    def fits_simulator(
        one: SimulatorEngine | SimulatorProcess,
    ) -> tuple[base.Engine, base.CachesPrefixes, base.ChecksSchemas]:
        return one, one, one

    def fits_toy(one: ToyEngine) -> tuple[base.Engine, base.Pauses]:
        return one, one


SRC = Path(llmserve.__file__).parent
OUTSIDE = [path for path in sorted(SRC.rglob("*.py")) if SRC / "engines" not in path.parents]


def test_every_optional_protocol_has_a_word_on_the_pages() -> None:
    optional = {one for one in vars(base).values() if getattr(one, "_is_runtime_protocol", False)}
    assert optional == set(ABILITIES.values())


@pytest.mark.parametrize(
    ("engine", "can"),
    [
        ("vllm", "sleep pause evict reset_cache structured_outputs device_bytes api"),
        ("torch", "reset_cache structured_outputs device_bytes progress"),
        ("simulator", "reset_cache structured_outputs"),
    ],
)
def test_what_a_class_can_is_known_without_an_engine_of_it(engine: str, can: str) -> None:
    assert " ".join(registry.BUILT_IN[engine].abilities()) == can


@pytest.mark.parametrize("process", [False, True])
def test_an_engine_can_what_its_class_can(process: bool) -> None:
    with llmserve.serve(engine="simulator", process=process) as session:
        engine = session.service.engine
        assert abilities(engine) == abilities(type(engine)) == (
            "reset_cache", "structured_outputs",
        )  # fmt: skip


def test_what_depends_on_the_start_the_method_answers_itself() -> None:
    """Here of a torch engine on a CPU, and of one with no tokenizer that tells tokens' bytes."""
    engine = registry.create("torch", sink=lambda _: None, clock=MonotonicClock())
    assert isinstance(engine, base.ChecksSchemas)
    with pytest.raises(ParamError, match="does not give"):
        asyncio.run(engine.check_form(Structured("regex", "a+")))
    with llmserve.serve(engine="torch", threads=1) as session:
        started = session.service.engine
        assert isinstance(started, base.ChecksSchemas)
        session.runtime.call(started.check_form(Structured("regex", "a+")))
        assert isinstance(started, base.Counts)
        counted = session.runtime.call(started.device_bytes())
        assert (counted is None) == (session.info.device == "cpu")


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(SRC)))
def test_no_caller_asks_which_engine_it_has(path: Path) -> None:
    """No name of an engine stands outside `engines/` as a value that could be compared."""
    tree = ast.parse(path.read_text())
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert not words & registry.BUILT_IN.keys()
    asked = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert "supports" not in asked
