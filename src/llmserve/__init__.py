"""llmserve: a notebook-native LLM serving lab. `import llmserve` is light; `serve` is not."""

from __future__ import annotations

__version__ = "0.1.0"
