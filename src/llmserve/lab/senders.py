"""Who sends the requests of a simulation: a load, as `Bench` drives it, or requests that are given.

In the turns of the bench driver's tasks, so that a load meets the front in the same order as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol

from llmserve.bench.load.prompts import prompt_of
from llmserve.bench.load.workload import Arrival, Load, Workload
from llmserve.bench.results.report import CLIENT_LIMIT
from llmserve.bench.run.driver import BACK_OFF_S, MAX_OUTSTANDING, maker, run_salt
from llmserve.core.agenda import Agenda
from llmserve.core.types import ParamError, Request
from llmserve.core.validation import mistyped, out_of
from llmserve.engines.simulator.reply import shortest_reply
from llmserve.engines.simulator.vocabulary import WordTokenizer
from llmserve.lab.front import Simulated, SimulatedFront

_SALT = 16
"""A prompt's salt and more are within its first tokens."""
_PROMPT_BITS = 14
"""Salts have 48 bits, and a token 63."""

Timed = Request | tuple[Request, float]
"""A request, or one with the time at which its client leaves."""


class Expect(Protocol):
    """As `BenchRecorder.expect`."""

    def __call__(
        self, request_id: str, *, shared_tokens: int, ttft_slo_ms: float | None
    ) -> object: ...


class LoadSender:
    """Sends a load; the agenda is stopped when all has ended."""

    def __init__(
        self, agenda: Agenda, front: SimulatedFront, load: Load, *, expect: Expect,
        refuse: Callable[[float, str], object], spelt: bool = True,
    ) -> None:
        """expect: is told of each request before it is sent. refuse: takes in one that is not
        sent, for too many are unanswered. Prompts that are not `spelt` are numbers, the same where
        the words would be."""
        self._agenda, self._front, self._load = agenda, front, load
        self._expect, self._refuse = expect, refuse
        self._salt = run_salt(load)
        self._spelt = spelt
        self._tokenizer = WordTokenizer()
        self._arrivals: Iterator[Arrival] = iter(())
        self._begun: set[int] = set()
        self._outstanding = 0
        self._sending = 0  # tasks of the driver that have more to send
        self._sent = 0
        self.lags = 0

    def start(self) -> None:
        self._agenda.soon(self._begin)

    def _begin(self) -> None:
        self._arrivals = self._load.arrivals()
        self._started = self._agenda.now()
        if self._load.clients is None:
            self._sending = 1
            self._await_next()
        else:
            self._sending = self._load.clients
            for _ in range(self._sending):
                self._agenda.soon(self._place)

    def _await_next(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is None:
            self._done()
            return
        make = self._prepare(arrival)
        when = self._started + arrival.at_s
        self._agenda.at(when, self._agenda.soon, self._arrive, arrival, make, when)

    def _arrive(self, arrival: Arrival, make: Callable[[float], Request], when: float) -> None:
        self.lags += 1
        if self._outstanding >= MAX_OUTSTANDING:
            self._refuse(when, CLIENT_LIMIT)
        else:
            self._outstanding += 1
            self._agenda.soon(self._send, make(when), arrival, self._conversed)
        self._await_next()

    def _conversed(self, served: bool) -> None:
        self._outstanding -= 1
        self._end_if_over()

    def _place(self, again: bool = False) -> None:
        """A client of the closed loop sends its next request."""
        arrival = next(self._arrivals, None)
        if arrival is None:
            self._done()
            return
        make = self._prepare(arrival)
        now, limit_s = self._agenda.now(), self._load.limit_s
        if limit_s is not None and now >= self._started + limit_s:
            self._done()
            return
        self.lags += again
        self._outstanding += 1
        self._send(make(now), arrival, self._placed)

    def _placed(self, served: bool) -> None:
        self._outstanding -= 1
        if served:
            self._place(again=True)
        else:
            when = self._agenda.now() + BACK_OFF_S
            self._agenda.at(when, self._agenda.soon, self._place, True)

    def _done(self) -> None:
        self._sending -= 1
        self._end_if_over()

    def _end_if_over(self) -> None:
        if not (self._sending or self._outstanding):
            self._agenda.stopped = True

    def _prepare(
        self, arrival: Arrival, history: tuple[int, ...] = ()
    ) -> Callable[[float], Request]:
        if self._spelt:
            prompt = prompt_of(self._tokenizer, arrival, self._salt, history)
        else:
            prompt = _numbers(arrival, self._salt)
        return maker(arrival, prompt, self._new_id)

    def _new_id(self) -> str:
        self._sent += 1
        return f"bench-{self._sent}"

    def _send(self, request: Request, arrival: Arrival, then: Callable[[bool], object]) -> None:
        """A request, which may be the first of a chat."""
        shared = arrival.prefix_tokens if arrival.prefix_salt in self._begun else 0
        if arrival.prefix_tokens:
            self._begun.add(arrival.prefix_salt)
        self._expect(request.id, shared_tokens=shared, ttft_slo_ms=arrival.ttft_slo_ms)
        ended = partial(self._answered, arrival, 0, then)
        if self._front.submit(request, ended) is None:
            then(False)

    def _answered(
        self, arrival: Arrival, turn: int, then: Callable[[bool], object], one: Simulated
    ) -> None:
        if not one.served or turn >= len(arrival.later):
            then(one.served)
            return
        agenda, request = self._agenda, one.request
        said = (*request.prompt_ids, *self._front.engine.reply_of(request, one.generated))
        due = agenda.now() + arrival.think_s
        following = arrival.turn(turn + 1)
        make = self._prepare(following, said)
        agenda.at(due, agenda.soon, self._follow, arrival, turn + 1, make, due, len(said), then)

    def _follow(
        self, arrival: Arrival, turn: int, make: Callable[[float], Request], due: float,
        known: int, then: Callable[[bool], object],
    ) -> None:  # fmt: skip
        self.lags += 1
        request = make(due)
        self._expect(request.id, shared_tokens=known, ttft_slo_ms=arrival.ttft_slo_ms)
        ended = partial(self._answered, arrival, turn, then)
        if self._front.submit(request, ended) is None:
            then(False)


def reads_replies(load: object, block_size: int) -> bool:
    """Whether words matter in it: those of chats, for their next turns hold them, and of prompts
    of which a block may be too short to be unlike any other."""
    alone = isinstance(load, Workload) and all(kind.turns == 1 for kind in load.kinds.values())
    return not alone or block_size < _SALT


def _numbers(arrival: Arrival, run_salt: int) -> tuple[int, ...]:
    shared = arrival.prefix_tokens
    head = (arrival.prefix_salt ^ run_salt) << _PROMPT_BITS
    own = (arrival.salt ^ run_salt) << _PROMPT_BITS
    numbers = range(own, own + arrival.prompt_tokens - shared)
    return (*range(head, head + shared), *numbers) if shared else tuple(numbers)


class RequestSender:
    """Sends requests at their times of arrival, in order; each client may leave at a time."""

    def __init__(self, agenda: Agenda, front: SimulatedFront, requests: Iterable[Timed]) -> None:
        self._agenda, self._front, self._requests = agenda, front, iter(requests)
        self._last_s = 0.0
        self.lags = 0
        self._unended = 0
        self._all_sent = False

    def start(self) -> None:
        self._agenda.soon(self._await_next)

    def _await_next(self) -> None:
        given = next(self._requests, None)
        if given is None:
            self._all_sent = True
            self._end_if_over()
            return
        request, leaves_s = given if isinstance(given, tuple) else (given, math.inf)
        if not isinstance(request, Request):
            raise mistyped("a request of the load", "a Request, or one with a time", request)
        if not request.prompt_ids:
            raise out_of(f"the prompt of {request.id}", "1 token or more", 0)
        if not self._last_s <= request.arrival < math.inf:
            least = f"{self._last_s:g} s or later, in order"
            raise out_of(f"the arrival of {request.id}", least, request.arrival)
        try:
            shortest_reply(request.sampling.structured_outputs)
        except ParamError as error:
            raise ParamError(error.param, f"request {request.id}: {error}") from None
        self._last_s = request.arrival
        agenda = self._agenda
        agenda.at(request.arrival, agenda.soon, self._arrive, request, leaves_s)

    def _arrive(self, request: Request, leaves_s: float) -> None:
        self._unended += 1
        if self._front.submit(request, self._ended) is None:
            self._unended -= 1
        elif leaves_s < math.inf:
            self._agenda.at(leaves_s, self._front.cancel, request.id)
        self._await_next()

    def _ended(self, one: Simulated) -> None:
        self._unended -= 1
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self._all_sent and not self._unended:
            self._agenda.stopped = True
