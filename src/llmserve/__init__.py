"""llmserve: a notebook-native LLM serving lab.

    session = llmserve.serve()          # a real server in this kernel; `%load_ext llmserve` too
    session.generate("Tell me a story.", max_tokens=64)
    session.set(max_num_seqs=8)         # while requests flow
    session.dashboard()

`import llmserve` is light; `serve` is not.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmserve.entrypoints.magics import load_ipython_extension, unload_ipython_extension
    from llmserve.entrypoints.nested import allow_nested
    from llmserve.entrypoints.session.serve import serve
    from llmserve.entrypoints.session.session import Session
    from llmserve.lab.remote import connect

# Without any handler Python prints warnings to stderr, which is whatever cell is running.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.1.0"
__all__ = [
    "Session",
    "allow_nested",
    "connect",
    "load_ipython_extension",
    "serve",
    "unload_ipython_extension",
]

_HOMES = {
    "Session": "llmserve.entrypoints.session.session",
    "serve": "llmserve.entrypoints.session.serve",
    "connect": "llmserve.lab.remote",
    "allow_nested": "llmserve.entrypoints.nested",
    "load_ipython_extension": "llmserve.entrypoints.magics",
    "unload_ipython_extension": "llmserve.entrypoints.magics",
}


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562): the module itself stays under a few milliseconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'llmserve' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
