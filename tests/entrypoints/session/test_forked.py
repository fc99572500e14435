"""A kernel that is forked: the child holds a copy of the session, and it is not its own."""

from __future__ import annotations

import os
import warnings

import llmserve


def fork_and_close(session: llmserve.Session) -> int:
    """What `sys.exit` in a fork, or the end of its `with`, comes to; the child's exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons: threads and fork
        child = os.fork()
    if child == 0:
        try:
            session.close()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_that_closes_the_session_ends_nothing_of_it() -> None:
    with llmserve.serve(engine="torch", threads=1) as session:
        engine = session.info.pids
        assert fork_and_close(session) == 0
        assert session.generate("hi", max_tokens=2).outcome.usage.completion_tokens == 2
        assert session.info.pids == engine
