"""Folders in the user's cache for what a later start may use again.

What lies there decides what runs, so each must be the user's own and nobody else's; where there
can be no such folder, nothing is kept.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def cache_folder(*names: str) -> Path | None:
    """`llmserve/<names>` in the user's cache, made where it is not there; None where there is no
    safe one."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        if not base.is_absolute():  # as XDG has it
            return None
        base.mkdir(parents=True, exist_ok=True)
        folder = base
        for name in ("llmserve", *names):
            folder = folder / name
            folder.mkdir(mode=0o700, exist_ok=True)
            if not own(folder):
                return None
    except (OSError, RuntimeError):  # not writable; no home
        return None
    return folder


def own(folder: Path) -> bool:
    """Whether it is a folder of this user, no link to one, into which nobody else can write."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and users_alone(found)


def users_alone(found: os.stat_result) -> bool:
    """Whether this user owns it and nobody else can write it. Windows has no such owners."""
    mine = hasattr(os, "getuid") and found.st_uid == os.getuid()
    return mine and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
