"""The lab: settings compared, swept and simulated, with the very scheduler that serves."""

from llmserve.bench.load.workload import Workload
from llmserve.engines.simulator.costs import StepCost
from llmserve.lab.simulate import Run, run_virtual, sweep

__all__ = ["Run", "StepCost", "Workload", "run_virtual", "sweep"]
