"""A wait of over two seconds is told, each second, and says how it ended."""

from __future__ import annotations

import pytest

from llmserve.core.progress import Waiting


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 10.0

    def now(self) -> float:
        return self.time


class Paper:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.ended = False

    def write(self, text: str) -> None:
        self.lines.append(text)

    def end(self) -> None:
        self.ended = True


def wait(seconds: float) -> Paper:
    paper, clock = Paper(), Hand()
    waiting = Waiting("starting torch", lambda: paper, clock.now)
    for _ in range(int(seconds / 0.25)):
        clock.time += 0.25
        waiting()
    waiting.end("ready")
    return paper


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1.75, []),
        (2.0, ["starting torch … 2 s", "starting torch: ready after 2 s"]),
        (3.5, [
            "starting torch … 2 s", "starting torch … 3 s", "starting torch: ready after 3.5 s",
        ]),
    ],
)  # fmt: skip
def test_only_a_long_wait_is_told_once_a_second(seconds: float, expected: list[str]) -> None:
    paper = wait(seconds)
    assert paper.lines == expected
    assert paper.ended == bool(expected)


def test_what_goes_on_is_told_anew_each_second() -> None:
    paper, clock = Paper(), Hand()
    stages = iter(["starting", "starting, compiling", "starting"])
    waiting = Waiting(lambda: next(stages), lambda: paper, clock.now)
    for _ in range(2):
        clock.time += 2
        waiting()
    waiting.end("done")
    assert paper.lines == [
        "starting … 2 s", "starting, compiling … 4 s", "starting: done after 4 s",
    ]


def test_where_nobody_would_read_it_nothing_is_written() -> None:
    asked = []
    clock = Hand()
    waiting = Waiting("starting torch", lambda: asked.append(1), clock.now)
    clock.time += 5
    waiting()
    waiting()
    waiting.end("ready")
    assert asked, "the test has not come as far as asking"
