"""Letting a cell call `asyncio.run`, which Jupyter's own running loop forbids."""

from __future__ import annotations


def allow_nested() -> None:
    """Patch asyncio so that `asyncio.run` and `run_until_complete` work inside a cell.

    Only for code that insists on them: a cell may `await` at its top level without this. The patch
    is nest-asyncio2's, holds for the whole process and cannot be undone; calling again changes
    nothing. llmserve itself never needs it.

    Raises ImportError where nest-asyncio2 is missing, ValueError where the running loop is not
    asyncio's own (uvloop cannot be patched).
    """
    try:
        import nest_asyncio2
    except ImportError:
        raise ImportError("allow_nested needs nest-asyncio2: pip install nest-asyncio2") from None
    try:
        nest_asyncio2.apply()
    except ValueError as error:
        raise ValueError(
            f"this event loop cannot be nested ({error}): run the kernel on asyncio's own loop, "
            "or `await` at the top level of the cell instead of asyncio.run"
        ) from None
