"""The simulator's process: `python -m llmserve.engines.simulator.worker FD`, started by
`process_engine.py`."""

from __future__ import annotations

import gc
import queue
import sys
import time

import msgspec

from llmserve.engines.process.child import ParentLink
from llmserve.engines.process.messages import Ready
from llmserve.engines.process.reports import send
from llmserve.engines.simulator.messages import StartStepping, ToSimulator
from llmserve.engines.simulator.paced import AHEAD, PacedSteps
from llmserve.engines.simulator.vocabulary import words

YOUNG = (100_000, 50, 50)
"""A step makes thousands of objects and no cycle: looking for one took a quarter of its time."""


def main() -> None:
    link = ParentLink(int(sys.argv[1]), msgspec.msgpack.Decoder(ToSimulator).decode)
    message = link.inbox.get()
    assert isinstance(message, StartStepping)
    words(0, 0, AHEAD)  # numpy is imported here, and not within the first reply
    info = message.setup.info()
    steps = PacedSteps(message.setup, message.knobs)
    ready = Ready(
        folder="",
        max_model_len=info.max_model_len,
        kv_capacity_tokens=info.kv_capacity_tokens,
        vocab_size=info.vocab_size or 0,
        device=info.device,
        dtype=info.dtype,
        details=info.details,
        structured_outputs=True,
    )
    send(link, ready)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*YOUNG)
    while True:
        turn(steps, link)


def turn(steps: PacedSteps, link: ParentLink) -> None:
    """One step, and all that came before it and while it was under way; without a step a wait for
    a message, or for the moment when a static batch closes."""
    answer_until(steps, link, 0.0)
    now = time.monotonic()
    end = steps.begin(now)
    if end is not None:
        answer_until(steps, link, end)
        send(link, steps.finish(time.monotonic()))
        return
    when = steps.wake_at(now)
    answer_one(steps, link, None if when is None else max(0.0, when - now))


def answer_until(steps: PacedSteps, link: ParentLink, end: float) -> None:
    """Handle what has come, and what comes before that moment."""
    while answer_one(steps, link, max(0.0, end - time.monotonic())):
        pass


def answer_one(steps: PacedSteps, link: ParentLink, timeout_s: float | None) -> bool:
    """Handle the next message; False where none comes in that time."""
    try:
        message = link.inbox.get(timeout_s != 0.0, timeout_s)
    except queue.Empty:
        return False
    answer = steps.handle(message, time.monotonic())  # type: ignore[arg-type]  # the decoder admits no other
    if answer is not None:
        send(link, answer)
    return True


if __name__ == "__main__":
    main()
