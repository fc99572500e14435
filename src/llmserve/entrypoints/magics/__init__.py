"""The magics: `%load_ext llmserve`, then `%llmserve help`.

Everything hangs off one `LlmserveMagic` per shell; nothing lives in this module. Errors of the user
are one red line and fail the cell (so that "Run All" stops there), never a traceback.
"""

from __future__ import annotations

from typing import Any

from llmserve.entrypoints.magics.completion import completer
from llmserve.entrypoints.magics.magic import LlmserveMagic

_NAME = "llmserve"


def load_ipython_extension(ip: Any) -> None:
    """Register `%llmserve`, `%%llmserve` and their completion. Loading again changes nothing."""
    if _loaded(ip) is not None:
        return
    magic = LlmserveMagic(ip)
    ip.register_magic_function(magic.llmserve, magic_kind="line_cell", magic_name=_NAME)
    magic.matcher = completer()
    ip.Completer.custom_matchers.append(magic.matcher)


def unload_ipython_extension(ip: Any) -> None:
    """Take magic and completion away. A server that runs goes on, held by its variable."""
    magic = _loaded(ip)
    if magic is None:
        return
    for kind in ("line", "cell"):
        del ip.magics_manager.magics[kind][_NAME]
    ip.Completer.custom_matchers.remove(magic.matcher)


def _loaded(ip: Any) -> LlmserveMagic | None:
    method = ip.magics_manager.magics["line"].get(_NAME)
    magic = getattr(method, "__self__", None)
    return magic if isinstance(magic, LlmserveMagic) else None
