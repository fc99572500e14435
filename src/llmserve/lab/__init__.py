"""The lab: settings compared, swept and simulated, with the very scheduler that serves."""

from llmserve.bench.load.workload import Workload
from llmserve.engines.simulator.costs import StepCost
from llmserve.lab.simulation import SimulationResult, simulate, sweep
from llmserve.lab.whole_run import Run, run_virtual

__all__ = ["Run", "SimulationResult", "StepCost", "Workload", "run_virtual", "simulate", "sweep"]
