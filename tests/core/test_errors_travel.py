"""Errors that reach the user pass from process to process, and copied, as they are."""

from __future__ import annotations

import copy
import pickle

import pytest

from llmserve.core.knobs import KnobError
from llmserve.core.types import ParamError
from llmserve.scheduling.admission import Rejected
from llmserve.serving.stream import Refused

ERRORS = [
    ParamError("seed", "seed is too large"),
    KnobError("max_active", "max_active is too small"),
    Refused(Rejected("queue_full", 2.0, "full")),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_after_a_pickle_and_a_copy(error: Exception) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(other) is type(error)
        assert (str(other), vars(other)) == (str(error), vars(error))
