"""Random loads for the simulation, with all that may happen to a request and to the knobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from llmserve.core.knobs import Knobs
from llmserve.core.tenants import Terms
from llmserve.core.types import Request, SamplingParams
from llmserve.engines.simulator.vocabulary import WORDS
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
    "batching": ["continuous", "continuous", "static", "none"],
    "batch_window_ms": [0, 5, 30],
    "max_num_seqs": [1, 2, 3, 8, 32],
    "max_num_batched_tokens": [1, 3, 8, 64, 2048],
    "long_prefill_token_threshold": [0, 2, 16],
    "min_decode_slots": [0, 1, 6],
}
"""Values to try of every knob that there is."""


def _times(most_s: float) -> st.SearchStrategy[float]:
    steps = st.integers(0, int(most_s / GRID_S)).map(lambda n: n * GRID_S)
    return steps | steps | st.floats(0, most_s)


def _knobs(most: int) -> st.SearchStrategy[dict[str, object]]:
    name = st.sampled_from(sorted(TURNS))
    one = name.flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(TURNS[name])))
    return st.lists(one, max_size=most).map(dict)


@st.composite
def _prompts(draw: st.DrawFn) -> tuple[int, ...]:
    """Some share a beginning; some repeat words of replies, as the turns of a chat do."""
    head = draw(st.sampled_from([(), (), (1,) * 4, (1,) * 9, (1,) * 9 + (2,) * 8]))
    own = draw(st.lists(st.sampled_from([1, 2, 256, 300, 400]), min_size=1, max_size=14))
    return head + tuple(own)


@st.composite
def _requests(draw: st.DrawFn) -> list[Timed]:
    arrivals = sorted(draw(st.lists(_times(0.4), min_size=1, max_size=24)))
    pool = draw(st.lists(_prompts(), min_size=1, max_size=6))
    given: list[Timed] = []
    for number, arrival in enumerate(arrivals):
        most = draw(st.integers(1, 4) | st.integers(1, 60))
        stop = draw(st.sampled_from([(), (), (), ("a",), (draw(st.sampled_from(WORDS)),)]))
        request = Request(
            id=f"r{number}",
            prompt_ids=draw(st.sampled_from(pool) | _prompts()),
            sampling=SamplingParams(max_tokens=most, stop=stop, seed=draw(st.integers(0, 1))),
            arrival=arrival,
            priority=draw(st.integers(-1, 2)),
            tenant=draw(st.sampled_from("aabc")),
            ttft_slo_ms=draw(st.sampled_from([None, None, 30, 300])),
        )
        leaves = draw(st.none() | st.none() | _times(0.6))
        given.append(request if leaves is None else (request, arrival + leaves))
    return given


@st.composite
def random_loads(draw: st.DrawFn) -> RandomLoad:
    policy = draw(st.sampled_from(POLICIES))
    knobs = draw(_knobs(5))
    knobs["policy"] = policy
    changes: list[Change] = draw(st.lists(st.tuples(_times(0.5), _knobs(2)), max_size=4))
    custom = policy == "custom" or any(values.get("policy") == "custom" for _, values in changes)
    terms = draw(
        st.sampled_from(
            [{}, {}, {"a": Terms(max_active=1)}, {"b": Terms(weight=4), "c": Terms(ttft_slo_ms=50)}]
        )
    )
    engine = {
        "block_size": draw(st.sampled_from([1, 4, 16])),
        "kv_capacity_tokens": draw(st.sampled_from([64, 96, 160, 131_072])),
        "max_model_len": draw(st.sampled_from([40, 8192])),
        "enable_prefix_caching": draw(st.booleans()),
        "max_num_seqs_ceiling": draw(st.sampled_from([4, 256])),
        "prefill_ms": draw(st.sampled_from([25, 5, 0])),
        "decode_ms": draw(st.sampled_from([10, 5, 0.0005, 0])),
        "prefill_token_ms": draw(st.sampled_from([0, 0, 0.37])),
        "decode_token_ms": draw(st.sampled_from([0, 0, 0.11])),
        "jitter": draw(st.sampled_from([0, 0, 0.1, 1])),
        "seed": draw(st.integers(0, 3)),
    }
    return RandomLoad(
        draw(_requests()), knobs, least_served if custom else None, changes, terms, engine
    )
