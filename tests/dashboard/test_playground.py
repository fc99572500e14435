"""What a page's playground starts really runs, really ends, and is told in bounded messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import pytest

from dashboard.parts import Desk, NoRuntime
from llmserve.core.knobs import Knobs
from llmserve.dashboard.page_link import GONE_S
from llmserve.dashboard.playground import LIMITS, LOAD_TENANT, Playground
from llmserve.engines.simulator.engine import SimulatorEngine
from llmserve.serving.publisher import publish_step
from llmserve.serving.service import Service


class ThisLoop:
    """The bridge of a session, for a test that is on the loop itself."""

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, asyncio.get_running_loop())


class Play:
    """A desk whose playground has a real service on virtual time behind it."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.parts, self.clock = desk, desk.parts, desk.parts.clock
        engine = SimulatorEngine(
            sink=lambda record: publish_step(self.parts.bus, record), clock=self.clock,
            prefill_ms=12, decode_ms=10,
        )
        self.service = Service(engine, self.parts.board, self.parts.bus, self.clock)
        self.playground = desk.charts.playground
        self.playground._service, self.playground._runtime = self.service, ThisLoop()
        self.copies: dict[int, list[Any]] = {}
        self.texts: dict[int, str] = {}
        self.messages: list[dict[str, Any]] = []

    def say(self, **content: Any) -> None:
        self.desk.wire.hear({"kind": "play", **content})
        self.read()

    def send(self, text: str = "a story", copies: int = 1, max_tokens: int = 50) -> None:
        self.say(act="send", text=text, copies=copies, max_tokens=max_tokens)

    def read(self) -> None:
        """As the page does: append what is told."""
        for content, _ in self.desk.wire.take("replies"):
            self.messages.append(content)
            if content["fresh"]:
                self.texts, self.copies = {}, {}
            for number, text, *figures in content["copies"]:
                self.texts[number] = self.texts.get(number, "") + text
                self.copies[number] = figures

    async def until(self, done: Callable[[], bool]) -> None:
        """Update five times a second, as the dashboard's thread does, until it is so."""
        for _ in range(500):
            if done():
                return
            await self.tick()
        raise AssertionError("it never came so far")

    async def tick(self, acknowledge: bool = True) -> None:
        await self.clock.sleep_until(self.clock.now() + 0.2)
        if acknowledge:
            self.desk.wire.hear({"kind": "ack", "seq": self.desk.charts._link.seq})
        self.desk.update()
        self.read()

    @property
    def ended(self) -> bool:
        return bool(self.copies) and all(
            figures[-1] not in ("waiting", "running") for figures in self.copies.values()
        )

    @property
    def words(self) -> str:
        return str(self.messages[-1]["words"])

    @property
    def here(self) -> int:
        """Requests that wait or run, by the folds."""
        snapshot = self.parts.telemetry.stats.snapshot(self.clock.now())
        return snapshot.running + snapshot.waiting


def play(script: Callable[[Play], Awaitable[None]]) -> None:
    desk = Desk.lay()

    async def main() -> None:
        room = Play(desk)
        await room.service.start()
        room.desk.wire.hear({"kind": "hello"})
        room.read()
        await script(room)
        room.playground.close()
        await room.clock.sleep_until(room.clock.now() + 0.1)
        assert room.here == 0
        await room.service.stop()

    desk.parts.clock.run(main())


def test_a_reply_streams_piece_by_piece_with_its_own_ttft_and_rate() -> None:
    async def script(room: Play) -> None:
        room.send(max_tokens=100)
        await room.until(lambda: room.ended)
        tokens, ttft_ms, rate, state = room.copies[0]
        assert (tokens, state) == (100, "length")
        assert ttft_ms == pytest.approx(22, abs=15)  # a prefill of 12 ms and a decode of 10 ms
        assert rate == pytest.approx(100, rel=0.05)  # a token each 10 ms
        assert len(room.texts[0].split()) == 100
        assert 5 <= len([m for m in room.messages if m["copies"]]) <= 8  # 5 Hz, not 100 messages

    play(script)


def test_copies_run_together_and_each_has_its_own_text() -> None:
    async def script(room: Play) -> None:
        room.send(copies=4)
        await room.tick()
        assert room.here == 4
        await room.until(lambda: room.ended)
        assert {n: figures[0] for n, figures in room.copies.items()} == dict.fromkeys(range(4), 50)
        assert all(len(room.texts[n].split()) == 50 for n in range(4))

    play(script)


def test_stop_cancels_at_once_and_frees_the_places() -> None:
    async def script(room: Play) -> None:
        room.parts.board.update(["max_num_seqs"], Knobs(max_num_seqs=2))
        room.send(copies=4, max_tokens=1000)  # two run and two wait
        await room.tick()
        assert room.here == 4
        room.say(act="stop")
        await room.clock.sleep_until(room.clock.now() + 0.05)
        assert room.here == 0
        assert [figures[-1] for figures in room.copies.values()] == ["stopped"] * 4
        before = dict(room.texts)
        await room.tick()
        assert room.texts == before

    play(script)


def test_a_page_that_leaves_or_falls_silent_ends_what_it_began() -> None:
    async def script(room: Play) -> None:
        room.send(max_tokens=1000)
        room.say(act="load", rate=20)
        await room.tick()
        room.desk.wire.hear({"kind": "bye"})
        await room.clock.sleep_until(room.clock.now() + 0.05)
        assert room.here == 0
        room.desk.wire.hear({"kind": "hello"})
        room.send(max_tokens=1000)
        for _ in range(int(GONE_S / 0.2) - 1):
            await room.tick(acknowledge=False)
        assert room.here == 1
        for _ in range(4):
            await room.tick(acknowledge=False)
        assert room.here == 0

    play(script)


def test_one_of_two_pages_that_leaves_ends_nothing_and_the_last_one_all() -> None:
    async def script(room: Play) -> None:
        room.desk.wire.hear({"kind": "hello", "page": "another"})
        room.send(max_tokens=1000)
        await room.tick()
        room.desk.wire.hear({"kind": "bye", "page": "another"})
        await room.tick()
        assert room.here == 1
        room.desk.wire.hear({"kind": "bye"})
        await room.clock.sleep_until(room.clock.now() + 0.05)
        assert room.here == 0

    play(script)


def test_a_closed_view_ends_what_its_page_began() -> None:
    async def script(room: Play) -> None:
        room.send(max_tokens=1000)
        await room.tick()
        room.playground.close()
        await room.clock.sleep_until(room.clock.now() + 0.05)
        assert room.here == 0
        room.send()
        assert room.words == "not started: the session has ended"

    play(script)


def test_a_load_sends_at_its_rate_until_it_is_stopped() -> None:
    async def script(room: Play) -> None:
        room.say(act="load", rate=20)
        for _ in range(100):  # 20 s
            await room.tick()
        load = room.messages[-1]["load"]
        assert load["sent"] == pytest.approx(400, rel=0.3)  # six times the deviation of chance
        assert (load["failed"], load["left_s"]) == (0, LIMITS["load_s"] - 20)
        assert room.desk.recorder._flow.tenants == [LOAD_TENANT]
        room.say(act="unload")
        await room.clock.sleep_until(room.clock.now() + 0.05)
        assert room.here == 0
        assert room.messages[-1]["load"] is None
        sent = room.parts.telemetry.stats.snapshot(room.clock.now()).finished
        await room.tick()
        await room.tick()
        assert room.parts.telemetry.stats.snapshot(room.clock.now()).finished == sent

    play(script)


def test_another_rate_takes_the_place_of_the_one_before() -> None:
    async def script(room: Play) -> None:
        room.say(act="load", rate=50)
        await room.until(lambda: room.here > 2)
        room.say(act="load", rate=0.01)
        await room.clock.sleep_until(room.clock.now() + 0.05)
        assert room.here <= 1
        assert room.messages[-1]["load"]["rate"] == 0.01

    play(script)


def test_a_load_ends_by_itself_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "load_s", 3.0)

    async def script(room: Play) -> None:
        room.say(act="load", rate=5)
        await room.until(lambda: room.messages[-1]["load"] is None)
        assert room.words == "the load has ended"
        assert room.here == 0

    play(script)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"act": "send", "text": "", "copies": 1, "max_tokens": 9}, "prompt is 1 to 20,000 char"),
        ({"act": "send", "text": "x" * 20_001, "copies": 1, "max_tokens": 9},
         "prompt is 1 to 20,000 characters, not"),
        ({"act": "send", "text": "x", "copies": 17, "max_tokens": 9},
         "copies must be within 1 and 16, not 17"),
        ({"act": "send", "text": "x", "copies": 1, "max_tokens": 0},
         "max_tokens must be within 1 and 1,024 tokens, not 0"),
        ({"act": "load", "rate": 1e9}, "rate must be within 0.01 and 200 requests/s"),
        ({"act": "load", "rate": "nan"}, "rate takes a number, not 'nan'"),
        ({"act": "load"}, "not started: rate takes a number, not None"),
    ],
)  # fmt: skip
def test_what_is_out_of_bounds_is_not_started_and_the_page_is_told_why(
    asked: dict[str, Any], words: str
) -> None:
    async def script(room: Play) -> None:
        room.say(**asked)
        await room.tick()
        assert room.here == 0
        assert words in room.words

    play(script)


def test_a_prompt_beyond_the_context_and_a_refusal_end_in_their_own_words() -> None:
    async def script(room: Play) -> None:
        room.send("a b " * 4500)  # words are the simulator's tokens; its context is 8192
        await room.until(lambda: room.ended)
        assert "leave no room to answer" in room.copies[0][-1]
        asked = Knobs(queue_mode="reject", max_active=1)
        room.parts.board.update(["queue_mode", "max_active"], asked)
        room.send(copies=3)
        await room.until(lambda: room.ended)
        states = sorted(figures[-1] for figures in room.copies.values())
        assert states.count("length") == 1
        assert all("slot" in state for state in states if state != "length")

    play(script)


def test_a_page_that_lost_some_asks_and_is_told_all_of_it() -> None:
    async def script(room: Play) -> None:
        room.send(max_tokens=40)
        await room.tick()
        room.desk.wire.hear({"kind": "replies"})
        await room.until(lambda: room.ended)
        assert len(room.texts[0].split()) == 40
        whole = [m for m in room.messages if m["whole"]]
        assert len(whole) == 2  # with the page's hello, and after the loss
        assert whole[1]["copies"][0][1]
        assert whole[0]["limits"] == LIMITS

    play(script)


def test_nothing_is_told_while_nothing_changes() -> None:
    async def script(room: Play) -> None:
        room.send(max_tokens=5)
        await room.until(lambda: room.ended)
        count = len(room.messages)
        for _ in range(10):
            await room.tick()
        assert len(room.messages) == count

    play(script)


def test_an_ended_session_answers_in_words() -> None:
    desk = Desk.lay()
    playground = Playground(desk.parts.service, NoRuntime())
    playground.hear({"act": "send", "text": "x", "copies": 1, "max_tokens": 1})
    content, _ = playground.news(None)
    assert content is not None
    assert content["words"] == "not started: this session is closed; start a new one"
