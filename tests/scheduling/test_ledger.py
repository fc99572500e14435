"""Accounts of any number of tenants: bounded, and never one of somebody who is here."""

from __future__ import annotations

from llmserve.core.knobs import Knobs
from llmserve.scheduling.admission import Accepted, Rejected
from llmserve.scheduling.scheduler import Scheduler
from support.requests import request

KEPT = 10_000


def test_tenants_without_number_wait_at_once_and_each_is_served() -> None:
    knobs = Knobs(max_active=1, queue_max=100_000, policy="fair_share")
    scheduler = Scheduler(1000)
    for n in range(KEPT + 50):
        assert scheduler.offer(request(f"r{n}", n, tenant=f"t{n}"), knobs, n) == Accepted()
    scheduler.check()
    served = 0
    while (chosen := scheduler.next(knobs, 1e6)) is not None:
        scheduler.finish(chosen.id, 1e6)
        served += 1
    assert served == KEPT + 50
    scheduler.check()


def test_the_longest_idle_are_forgotten_once_there_are_too_many() -> None:
    knobs = Knobs(max_active=1, queue_max=0)
    scheduler = Scheduler(1000)
    scheduler.offer(request("busy", tenant="busy"), knobs, 0)
    scheduler.next(knobs, 0)
    for n in range(KEPT + 50):
        refused = scheduler.offer(request(f"r{n}", n, tenant=f"t{n}"), knobs, n)
        assert isinstance(refused, Rejected)
    tenants = scheduler.ledger.tenants
    assert len(tenants) == KEPT
    assert {"busy", f"t{KEPT + 49}"} <= set(tenants)
    assert "t0" not in tenants
