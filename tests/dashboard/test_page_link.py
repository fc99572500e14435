from __future__ import annotations

from llmserve.dashboard.page_link import GONE_S, PATIENCE_S, PageLink


def test_nothing_is_due_before_a_page_says_hello() -> None:
    assert PageLink().due(oldest=0, now=0.0) == "nothing"


def test_a_page_gets_a_snapshot_then_deltas_with_numbers_that_count_up() -> None:
    link = PageLink()
    link.hello(0.0)
    assert link.due(0, 0.0) == "snapshot"
    assert link.sent(position=5) == 1
    assert link.due(0, 0.2) == "delta"
    assert link.sent(position=6) == 2


def test_a_page_silent_for_two_seconds_gets_nothing_until_it_says_hello() -> None:
    link = PageLink()
    link.hello(0.0)
    link.sent(1)
    assert link.due(0, PATIENCE_S) == "delta"
    assert link.due(0, PATIENCE_S + 0.1) == "nothing"
    link.acknowledged(1, PATIENCE_S + 0.2)  # too late: only a hello makes sure nothing is missing
    assert link.due(0, PATIENCE_S + 0.2) == "nothing"
    link.hello(9.0)
    assert link.due(0, 9.0) == "snapshot"


def test_an_acknowledged_page_is_served_on() -> None:
    link = PageLink()
    link.hello(0.0)
    for tenth in range(1, 100):
        now = tenth / 2
        assert link.due(0, now) != "nothing"
        link.acknowledged(link.sent(tenth), now)


def test_a_number_that_was_never_sent_acknowledges_nothing() -> None:
    link = PageLink()
    link.hello(0.0)
    link.sent(1)
    link.acknowledged(99, 1.9)
    assert link.due(0, PATIENCE_S + 0.1) == "nothing"


def test_a_page_that_missed_rows_let_go_meanwhile_gets_a_snapshot() -> None:
    link = PageLink()
    link.hello(0.0)
    link.sent(position=10)
    assert link.due(oldest=11, now=0.2) == "snapshot"


def test_a_page_that_left_gets_nothing() -> None:
    link = PageLink()
    link.hello(0.0)
    link.bye()
    assert link.due(0, 0.1) == "nothing"


def test_a_page_that_leaves_takes_nothing_from_another_of_the_same_view() -> None:
    link = PageLink()
    link.hello(0.0, "one")
    link.hello(0.1, "two")
    link.sent(1)
    link.bye("two")
    assert link.due(0, 0.2) == "delta"
    link.bye("one")
    assert link.due(0, 0.3) == "nothing"


def test_a_page_that_falls_silent_beside_another_is_back_once_it_acknowledges() -> None:
    link = PageLink()
    link.hello(0.0, "silent")
    link.hello(0.0, "awake")
    for tenth in range(1, 40):
        link.acknowledged(link.sent(tenth), tenth / 10, "awake")
    assert link.due(0, 3.9) == "delta"
    link.acknowledged(link.seq, 3.9, "silent")  # it was sent all the same, so it lacks nothing
    link.bye("awake")
    assert link.due(0, 4.0) == "delta"


def test_pages_that_reload_without_a_word_leave_nothing_behind() -> None:
    link = PageLink()
    for second in range(100):
        link.hello(float(second), f"page {second}")
        link.due(0, float(second))
    assert len(link._heard) <= GONE_S + 1


def test_a_page_that_is_only_slow_is_not_gone() -> None:
    link = PageLink()
    link.hello(0.0)
    assert not link.gone(PATIENCE_S + 0.1)
    assert link.gone(GONE_S + 0.1)
    link.hello(20.0, "slow")
    link.hello(25.0, "awake")
    link.bye("awake")
    assert not link.gone(25.1)
    link.bye("slow")
    assert link.gone(25.2)
