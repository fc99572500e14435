"""The engines there are: each by its name, made where its options are right."""

from __future__ import annotations

import inspect
import warnings

from llmserve.core.clock import Clock
from llmserve.engines.base import _GIVEN, Engine, StepSink, no_option
from llmserve.engines.process.threads import waited_for


def default() -> str:
    """What "auto" means here: vllm where it imports and there is a GPU, else torch."""
    from importlib import import_module
    from importlib.util import find_spec

    found = find_spec("vllm")
    if found is None or found.origin is None:  # a folder of that name is no vLLM
        return "torch"
    if not has_gpu():
        return "torch"
    try:
        waited_for(lambda: import_module("vllm.engine.arg_utils"))
    except ImportError as error:
        warnings.warn(
            f"vLLM is installed but does not import ({error}), so the torch engine is taken; "
            'engine="vllm" tells what to install',
            stacklevel=3,
        )
        return "torch"
    return "vllm"


def has_gpu() -> bool:
    """NVML finds one."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    found = bool(pynvml.nvmlDeviceGetCount())
    pynvml.nvmlShutdown()
    return found


def create(name: str, *, sink: StepSink, clock: Clock, **options: object) -> Engine:
    """An engine by name, not yet started. Heavy imports happen here, in its own branch.

    Raises TypeError for an option that the engine does not have, ValueError for an unknown name.
    """
    if name == "torch":
        from llmserve.engines.torch.engine import TorchEngine

        return TorchEngine(sink=sink, clock=clock, **options)
    if name == "simulator":
        from llmserve.engines.simulator.engine import SimulatorEngine

        known = [one for one in inspect.signature(SimulatorEngine).parameters if one not in _GIVEN]
        for option in options:
            if option not in known:
                raise no_option(name, option, known)
        return SimulatorEngine(sink=sink, clock=clock, **options)  # type: ignore[arg-type]  # as above
    if name == "vllm":
        from llmserve.engines.vllm.engine import VllmEngine

        return VllmEngine(sink=sink, clock=clock, **options)
    raise ValueError(f"there is no engine {name!r}; engines: torch, simulator, vllm")
