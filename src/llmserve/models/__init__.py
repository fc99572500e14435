"""The bundled toy model: a path, and nothing heavy until someone trains or loads it."""

from pathlib import Path

__all__ = ["bundled_path"]


def bundled_path() -> Path:
    """Folder of the tiny model, in the layout that `from_pretrained` reads without a network."""
    return Path(__file__).parent / "tiny"
