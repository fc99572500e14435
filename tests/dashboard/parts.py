"""The real parts of a session without its engine, and a wire in place of Jupyter's comm."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from llmserve.core.clock import VirtualClock
from llmserve.core.events import (
    DeviceSampled,
    Dispatched,
    EventBus,
    Finished,
    FirstToken,
    KnobsChanged,
    StepRecorded,
    Submitted,
    TokensEmitted,
    WaitReasonChanged,
)
from llmserve.core.knobs import Applied, KnobBoard, differences
from llmserve.core.types import StepRecord, StepRow
from llmserve.dashboard.charts import Charts
from llmserve.dashboard.controls import Controls
from llmserve.dashboard.playground import Playground
from llmserve.dashboard.queue_figures import QueueFigures
from llmserve.dashboard.recorder import SeriesRecorder
from llmserve.dashboard.view import about
from llmserve.engines.base import EngineInfo
from llmserve.engines.simulator.engine import SimulatorEngine
from llmserve.observe import Telemetry
from llmserve.serving.service import Service

GIB = 2**30
INFO = EngineInfo(
    engine="simulator",
    model_id="toy-storyteller",
    max_model_len=2048,
    kv_capacity_tokens=65_536,
    block_size=16,
    ceilings={"max_num_seqs": 256, "max_num_batched_tokens": 8192},
    unsupported={"long_prefill_token_threshold": "this engine has no chunked prefill"},
)
URL = "http://127.0.0.1:8000/v1"
ABOUT = about(INFO, URL)


class NoRuntime:
    """As a closed session's: whoever submits work to it is told so."""

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        work.close()
        raise RuntimeError("this session is closed; start a new one")


class Parts:
    """Looks like a session to a dashboard; time passes only by `play`."""

    url = URL
    info = INFO

    def __init__(self) -> None:
        self.clock = VirtualClock(1000.0)
        self.board = KnobBoard()
        self.bus = EventBus()
        self.telemetry = Telemetry(self.bus, self.clock)
        self.flow = QueueFigures()
        self.bus.attach(self.flow)
        self.runtime = NoRuntime()
        engine = SimulatorEngine(sink=lambda _: None, clock=self.clock)  # nobody starts it
        self.service = Service(engine, self.board, self.bus, self.clock)
        self.closed = False
        self.step = 0
        self.steps = 0
        self.set_calls: list[dict[str, object]] = []
        self._callbacks: list[Callable[[], None]] = []
        self._requests = 0

    def set(self, **changes: object) -> Applied:
        self.set_calls.append(changes)
        return self.change(changes, "code")

    def change(self, changes: dict[str, object], source: str) -> Applied:
        before, after = self.board.update(changes, self.board.current.changed(changes))
        changed = differences(before, after)
        event = KnobsChanged(
            t=self.clock.now(), changed=changed, source=source, step=self.step, ms=0.4
        )
        self.bus.publish(event)
        return Applied(after, changed, adopted_step=self.step, ms=0.4)

    def on_close(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def close(self) -> None:
        self.closed = True
        for callback in self._callbacks:
            callback()

    def play(self, seconds: float, *, ttft_s: float, gap_s: float = 0.02, tokens: int = 10) -> None:
        """One request that takes `seconds` in all, then a sample of the host's memory."""
        self._requests += 1
        name = f"r{self._requests}"
        begin = self.clock.now()
        publish = self.bus.publish
        submitted = Submitted(
            t=begin, request_id=name, tenant="default", priority=0, prompt_tokens=40, max_tokens=64
        )
        publish(submitted)
        publish(WaitReasonChanged(t=begin, request_id=name, reason="cap"))
        publish(Dispatched(t=begin + ttft_s / 2, request_id=name))
        self._publish_step(begin + ttft_s / 2, ttft_s / 2, StepRow(name, "prefill", 40))
        publish(FirstToken(t=begin + ttft_s, request_id=name))
        for i in range(tokens):
            if i:
                self._publish_step(
                    begin + ttft_s + (i - 1) * gap_s, gap_s, StepRow(name, "decode", 1)
                )
            publish(TokensEmitted(t=begin + ttft_s + i * gap_s, counts={name: 1}))
        end = begin + ttft_s + tokens * gap_s
        ended = Finished(
            t=end, request_id=name, reason="length", prompt_tokens=40, completion_tokens=tokens
        )
        publish(ended)
        self.clock.advance(seconds)
        self.step += tokens
        self.sample_host(1.0 + 0.001 * self._requests)

    def _publish_step(self, start: float, took: float, *rows: StepRow) -> None:
        record = StepRecord(
            index=self.steps, start_s=start, duration_s=took, rows=rows, running=len(rows),
            waiting=0, kv_used_tokens=64 * len(rows), kv_capacity_tokens=INFO.kv_capacity_tokens,
            max_num_seqs=self.board.current.max_num_seqs,
            max_num_batched_tokens=self.board.current.max_num_batched_tokens,
        )
        self.steps += 1
        self.bus.publish(StepRecorded(t=start + took, record=record))

    def sample_host(self, own_gib: float) -> None:
        self.bus.publish(
            DeviceSampled(
                t=self.clock.now(), kind="host", name="host", used_bytes=9 * GIB,
                total_bytes=24 * GIB, own_bytes=int(own_gib * GIB), utilization=0.4,
            )
        )


@dataclass
class Wire:
    """What one widget would have sent over its comm, and a way to answer it."""

    widget: Charts
    sent: list[tuple[dict[str, Any], list[bytes]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.widget.comm.publish_msg = self._record

    def _record(self, msg_type: str, data: Any = None, buffers: Any = None, **_: Any) -> None:
        if (data or {}).get("method") == "custom":
            self.sent.append((data["content"], [bytes(part) for part in buffers or ()]))

    def hear(self, content: dict[str, Any], *buffers: bytes) -> None:
        data = {"method": "custom", "content": content}
        self.widget._handle_msg({"content": {"data": data}, "buffers": list(buffers)})

    def take(self, *kinds: str) -> list[tuple[dict[str, Any], list[bytes]]]:
        """What was sent since: of these kinds, else of all but what goes apart from the charts."""
        sent, apart = self.take_all(), ("why", "tape", "replies")
        return [m for m in sent if (m[0]["kind"] in kinds if kinds else m[0]["kind"] not in apart)]

    def take_all(self) -> list[tuple[dict[str, Any], list[bytes]]]:
        sent = self.sent.copy()
        del self.sent[: len(sent)]  # another thread may have sent more meanwhile
        return sent


@dataclass
class Desk:
    """One dashboard over its parts, driven by hand: no thread samples or pushes."""

    parts: Parts
    recorder: SeriesRecorder
    controls: Controls
    charts: Charts
    wire: Wire

    @classmethod
    def lay(cls) -> Desk:
        parts = Parts()
        recorder = SeriesRecorder(parts.telemetry, parts.board, parts.bus, parts.clock)
        recorder.sample()
        controls = Controls(parts.board, INFO, parts.clock, parts.set)
        playground = Playground(parts.service, parts.runtime)
        charts = Charts(recorder, parts.board, controls, parts.clock, ABOUT, playground)
        return cls(parts, recorder, controls, charts, Wire(charts))

    def update(self) -> None:
        self.recorder.sample()
        self.charts.push()
