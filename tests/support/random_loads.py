"""Random loads for the simulation, with all that may happen to a request and to the knobs."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from llmserve.core.knobs import Knobs
from llmserve.core.tenants import Terms
from llmserve.core.types import Request, SamplingParams, Structured
from llmserve.engines.simulator.reply import shortest_reply
from llmserve.engines.simulator.step_model import RANKS, Spread, StepTerm, StepTimeModel
from llmserve.engines.simulator.vocabulary import OPENING, WORDS, voice, words
from llmserve.lab.senders import Timed
from llmserve.lab.simulation import Change
from llmserve.scheduling.user_policy import Choice, LedgerView

POLICIES = ("fifo", "priority", "fair_share", "shortest_first", "deadline", "custom")
GRID_S = 0.005
"""Many times are multiples of it, as the ends of steps are: so there are ties."""


@dataclass(frozen=True)
class RandomLoad:
    requests: list[Timed]
    knobs: dict[str, object]
    policy: Choice | None
    changes: list[Change]
    terms: dict[str, Terms]
    engine: dict[str, Any] = field(default_factory=dict)


def least_served(waiting: tuple[Request, ...], ledger: LedgerView, knobs: Knobs) -> str:
    """A user's policy that reads what there is: service, sizes, arrivals."""
    return min(
        waiting, key=lambda one: (ledger.tenants[one.tenant].served, -len(one.prompt_ids), one.id)
    ).id


TURNS: dict[str, list[object]] = {
    "policy": [*POLICIES],
    "priority_aging_s": [None, 0.02, 1.0],
    "shortest_aging_tps": [0, 50, 5000],
    "ttft_slo_ms": [20, 200, 5000],
    "length_estimate": ["learned", "max_tokens"],
    "tenant_weights": ["", "a:3", "a:0.7,b:3"],
    "max_active": [None, 1, 2, 4],
    "max_active_per_tenant": [None, 1, 2],
    "max_tokens_in_flight": [None, 40, 200],
    "kv_share_per_tenant": [None, 0.2, 0.6],
    "queue_max": [1, 3, 1000],
    "queue_mode": ["queue", "queue", "reject"],
    "queue_timeout_s": [0.05, 0.3, 120],
    "request_timeout_s": [0.06, 0.5, 900],
    "rate_limit_rps": [None, 20],
    "rate_burst": [1, 3],
    "rate_limit_tps": [None, 400],
    "rate_burst_tokens": [30, 200],
    "admission_slo": ["off", "refuse"],
    "stream_interval_ms": [0, 50],
    "batching": ["continuous", "continuous", "static", "none"],
    "batch_window_ms": [0, 5, 30],
    "max_num_seqs": [1, 2, 3, 8, 32],
    "max_num_batched_tokens": [1, 3, 8, 64, 2048],
    "long_prefill_token_threshold": [0, 2, 16],
    "min_decode_slots": [0, 1, 6],
}
"""Values to try of every knob that there is."""


def random_load(seed: int, requests: int) -> RandomLoad:
    """One of so many requests."""
    rng = random.Random(seed)
    policy = rng.choice(POLICIES)
    knobs: dict[str, object] = _knobs(rng, rng.choice((0, 2, 4, 8))) | {"policy": policy}
    span_s = rng.choice((0.0, 0.1, 0.4, 1.5))
    changes: list[Change] = [
        (_time(rng, span_s + 0.3), _knobs(rng, 2)) for _ in range(rng.choice((0, 0, 1, 4)))
    ]
    if changes and rng.random() < 0.3:  # several at once
        changes += [(changes[0][0], _knobs(rng, 2)) for _ in range(2)]
    custom = policy == "custom" or any(values.get("policy") == "custom" for _, values in changes)
    return RandomLoad(
        _requests(rng, requests, span_s),
        knobs,
        least_served if custom else None,
        changes,
        rng.choice(TERMS),
        {name: rng.choice(values) for name, values in ENGINE.items()},
    )


def random_loads(most: int = 40) -> st.SearchStrategy[RandomLoad]:
    """A seed draws all but the number of requests: else almost all loads would be idle ones."""
    return st.builds(random_load, st.integers(0, 2**32), st.integers(1, most))


TERMS: list[dict[str, Terms]] = [
    {}, {}, {"a": Terms(max_active=1)}, {"b": Terms(weight=4), "c": Terms(ttft_slo_ms=50)},
]  # fmt: skip
MEASURED = StepTimeModel(
    terms=(
        StepTerm("step", 0.002), StepTerm("prefill", 0.001), StepTerm("decode_row", 1e-4),
        StepTerm("prefill_row", 3e-4), StepTerm("prefill_token", 2e-4), StepTerm("kv_token", 3e-6),
        StepTerm("pair", 1e-7), StepTerm("row_block", 5e-4, at=8), StepTerm("graph_row", 1e-4),
        StepTerm("first_decode_row", 4e-4, at=2), StepTerm("first_prefill_token", 1e-4, at=4),
    ),
    decodes=Spread(tuple(0.8 + 0.4 * rank**3 for rank in RANKS), mean=0.93),
    prefills=Spread(tuple(0.5 + rank for rank in RANKS), mean=1.0),
    correlation=0.4,
)  # fmt: skip
"""Steps as they might have been measured, with every sort of term."""
SCATTERED = Spread(tuple(0.2 + 4 * rank**6 for rank in RANKS), mean=1.3)
ENGINE: dict[str, list[Any]] = {
    "block_size": [1, 4, 4, 16],
    "kv_capacity_tokens": [64, 96, 160, 400, 131_072],
    "max_model_len": [40, 8192],
    "enable_prefix_caching": [True, True, False],
    "max_num_seqs_ceiling": [4, 256, 256],
    "prefill_ms": [25, 5, 5, 0],
    "decode_ms": [10, 5, 5, 0.0005, 0],
    "prefill_token_ms": [0, 0, 0.37],
    "decode_token_ms": [0, 0, 0.11],
    "jitter": [0, 0, 0, 0.1, 1],
    "seed": [0, 1, 2],
    "times": [None, None, MEASURED],
    "dispatch_ms": [0, 0, 0, 0.4, 5],
    "delivery_ms": [0, 0, 0, 0.3, 5, 23],
    "dispatch": [None, None, SCATTERED],
    "delivery": [None, SCATTERED],
}
HEADS: list[tuple[int, ...]] = [(), (), (1,) * 4, (1,) * 9, (1,) * 9 + (2,) * 8, (3,) * 40]

FORMS = [
    Structured("choice", '["", "nothing else"]'),
    Structured("choice", '["stone"]'),
    Structured("regex", "\u00e9t\u00e9 [0-9]{3,9}"),
    Structured("json", '{"type": "object", "properties": {"name": {"type": "string"}},'
               ' "required": ["name"]}'),
    Structured("grammar", "start: /(.|\\n)*/"),
]  # fmt: skip
"""Texts of no byte, of some and of some that are no character alone; and one that may be any."""


def _time(rng: random.Random, most_s: float) -> float:
    steps = rng.randint(0, round(most_s / GRID_S)) * GRID_S
    return steps if rng.random() < 0.6 else rng.uniform(0, most_s)


def _knobs(rng: random.Random, most: int) -> dict[str, object]:
    names = rng.sample(sorted(TURNS), min(most, len(TURNS)))
    return {name: rng.choice(TURNS[name]) for name in names}


def _prompt(rng: random.Random) -> tuple[int, ...]:
    """Some share a beginning."""
    own = [rng.choice((1, 2, 3)) for _ in range(rng.choice((1, 3, 12, 30)))]
    return (*rng.choice(HEADS), *own)


def _requests(rng: random.Random, count: int, span_s: float) -> list[Timed]:
    """Some prompts go on from another's reply, as the turns of a chat do."""
    pool = [_prompt(rng) for _ in range(rng.randint(1, 6))]
    given: list[Timed] = []
    for number, arrival in enumerate(sorted(_time(rng, span_s) for _ in range(count))):
        prompt, seed = rng.choice(pool), rng.randint(0, 1)
        if rng.random() < 0.2:
            form, most = rng.choice(FORMS), rng.randint(1, 30)
            said = None if rng.random() < 0.7 else shortest_reply(form)
            prompt = (*prompt, *(words(voice(prompt, seed), 0, most) if said is None else said))
        request = Request(
            id=f"r{number}",
            prompt_ids=prompt if rng.random() < 0.7 else _prompt(rng),
            sampling=_sampling(rng, seed),
            arrival=arrival,
            priority=rng.randint(-1, 2),
            tenant=rng.choice("aabc"),
            ttft_slo_ms=rng.choice((None, None, 30, 300)),
        )
        leaves_s = arrival + _time(rng, 0.4)
        given.append((request, leaves_s) if rng.random() < 0.2 else request)
    return given


def _sampling(rng: random.Random, seed: int) -> SamplingParams:
    """Some want their prompt's log-probabilities, a few of these no reply; some have a form."""
    scored = rng.random() < 0.2
    return SamplingParams(
        max_tokens=rng.choice((0, 1, 20)) if scored else rng.choice((1, 2, 5, 20, 60)),
        prompt_logprobs=rng.choice((0, 2)) if scored else None,
        structured_outputs=rng.choice(FORMS) if rng.random() < 0.15 else None,
        seed=seed,
        stop=_stop(rng),
        stop_token_ids=(ord("e"), ord("1"), OPENING) if rng.random() < 0.1 else (),
        include_stop_str_in_output=rng.random() < 0.3,
    )


def _stop(rng: random.Random) -> tuple[str, ...]:
    return (rng.choice(WORDS), rng.choice("aeiz")) if rng.random() < 0.15 else ()
