"""Load and its report: `load/` says what arrives, `run/` sends it, `results/` reports it.

What a load is made of can be had from here; `session.bench` sends it.
"""

from llmserve.bench.load.request_kinds import Kind, LogNormal
from llmserve.bench.load.traces import Replay, read_load
from llmserve.bench.load.workload import Arrival, ChatTurn, Workload

__all__ = ["Arrival", "ChatTurn", "Kind", "LogNormal", "Replay", "Workload", "read_load"]
