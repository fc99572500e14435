"""Where notebooks find the figures that `llmserve.figures` draws."""

from __future__ import annotations

from llmserve.figures import Figure, heat, lines

__all__ = ["Figure", "heat", "lines"]
