"""The registry of engines: ours, one entry each, and those of installed packages (`plugins.py`)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec

from llmserve.core.clock import Clock
from llmserve.core.validation import meant
from llmserve.engines import plugins, vllm
from llmserve.engines.base import Engine, EngineError, StepSink, no_option
from llmserve.engines.entry import EngineEntry, EngineOption, MakeEngine, keywords, takes_any
from llmserve.engines.process.threads import waited_for

AUTO = "auto"
"""In place of a name: the first of our engines that says it shall be taken here."""


def has_gpu() -> bool:
    """Whether NVML finds a GPU."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    found = bool(pynvml.nvmlDeviceGetCount())
    pynvml.nvmlShutdown()
    return found


def _load_vllm() -> MakeEngine:
    from llmserve.engines.vllm.engine import VllmEngine

    return VllmEngine


def _vllm_options() -> Mapping[str, EngineOption]:
    from llmserve.engines.vllm.option_names import option_names

    return dict.fromkeys(option_names(), EngineOption())


def _vllm_runs_here() -> bool:
    """It imports, and there is a GPU."""
    found = find_spec("vllm")
    if found is None or found.origin is None:  # a folder of that name is no vLLM
        return False
    if not has_gpu():
        return False
    try:
        waited_for(lambda: import_module("vllm.engine.arg_utils"))
    except ImportError as error:
        warnings.warn(
            f"vLLM is installed but does not import ({error}), so the torch engine is taken; "
            'engine="vllm" says what to install',
            stacklevel=4,
        )
        return False
    return True


def _load_torch() -> MakeEngine:
    from llmserve.engines.torch.engine import TorchEngine

    return TorchEngine


def _torch_options() -> Mapping[str, EngineOption]:
    from llmserve.engines.torch.options import TorchOptions

    return keywords(TorchOptions)


def _load_simulator() -> MakeEngine:
    from llmserve.engines.simulator.engine import SimulatorEngine

    return SimulatorEngine


def _choose_simulator(options: Mapping[str, object]) -> MakeEngine:
    from llmserve.engines.simulator.setup import in_process

    if not in_process(options):
        return _load_simulator()
    from llmserve.engines.simulator.process_engine import SimulatorProcess

    return SimulatorProcess


def _simulator_options() -> Mapping[str, EngineOption]:
    from llmserve.engines.simulator.setup import SimulatorSetup

    return keywords(SimulatorSetup)


BUILT_IN: Mapping[str, EngineEntry] = {
    entry.name: entry
    for entry in (
        EngineEntry(
            name="vllm",
            summary="the real vLLM in your kernel, on a GPU or by its CPU build",
            load=_load_vllm,
            options=_vllm_options,
            install=vllm.INSTALL,
            auto=_vllm_runs_here,
        ),
        EngineEntry(
            name="torch",
            summary="models of transformers in a child process, on a GPU or a CPU",
            load=_load_torch,
            options=_torch_options,
            auto=lambda: True,
        ),
        EngineEntry(
            name="simulator",
            summary="no model: the same batching over what a step would cost",
            load=_load_simulator,
            choose=_choose_simulator,
            options=_simulator_options,
            default_model="the simulator",
        ),
    )
}
"""In the order in which "auto" asks them."""


def names() -> tuple[str, ...]:
    """Return the engine names that may be asked for, "auto" first. Nothing is imported."""
    return tuple(dict.fromkeys((AUTO, *BUILT_IN, *plugins.installed())))


def find(name: str) -> EngineEntry:
    """Return an engine's entry.

    ValueError for an unknown name; EngineError where the package that brings it is broken."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    point = plugins.installed().get(name)
    if point is None or name == AUTO:
        known = [one for one in names() if one != AUTO]
        raise ValueError(f"there is no engine {name!r}{meant(name, known, called='engines:')}")
    entry = plugins.read(point)
    if isinstance(entry, EngineError):
        raise entry
    return entry


def entries() -> tuple[EngineEntry, ...]:
    """All that can be used; a warning for each that an installed package brings and cannot be."""
    found = dict(BUILT_IN)
    for name, point in plugins.installed().items():
        entry = plugins.read(point)
        if isinstance(entry, EngineError):
            warnings.warn(str(entry), stacklevel=2)
        elif name in (AUTO, *BUILT_IN):
            whose = plugins.package_of(point)
            warnings.warn(f"{whose} brings an engine {name!r}, which is llmserve's", stacklevel=2)
        else:
            found[name] = entry
    return tuple(found.values())


def default() -> str:
    """Return the engine that "auto" means here."""
    for entry in BUILT_IN.values():
        if entry.auto is not None and entry.auto():
            return entry.name
    raise AssertionError("the last engine that may be taken always is")


def auto_fallback() -> EngineEntry:
    """What "auto" means where nothing better is found; known without looking."""
    return [entry for entry in BUILT_IN.values() if entry.auto is not None][-1]


def default_model(name: str) -> str:
    """What `model=None` is called while this engine starts."""
    return (auto_fallback() if name == AUTO else find(name)).default_model


def able_to(protocol: type) -> str:
    """Return names of our engines that can, for an error about one that cannot."""
    found = [name for name, one in BUILT_IN.items() if isinstance(one.loaded(), protocol)]
    return " and ".join(found)


def create(name: str, /, *, sink: StepSink, clock: Clock, **options: object) -> Engine:
    """An engine by name, not yet started. Heavy imports happen here.

    Raises TypeError for an option that the engine does not have, ValueError for an unknown name,
    EngineError where the engine does not import.
    """
    make = find(name).loaded_for(options)
    if not takes_any(make):
        known = keywords(make)
        for option in options:
            if option not in known:
                raise no_option(name, option, list(known))
    return make(sink=sink, clock=clock, **options)
