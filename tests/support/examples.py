"""How many examples a test draws, by hypothesis's profile: `make test` tries few, `make test-long`
many. tests/conftest.py registers both."""

from __future__ import annotations

from hypothesis import settings

IN_CI = 100
LONG = 680
"""`max_examples` of the two profiles: 1,500 runs of a machine in CI are 10,200 in the long one."""


def examples(in_ci: int) -> int:
    """As many as the running profile makes of so many in CI."""
    return in_ci * settings().max_examples // IN_CI
