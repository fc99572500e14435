"""What CUDA adds: recorded decode steps and one attention kernel for prompts.

All that decides lies in `graphs.py` and `ragged.py`, which run on any device; this hands them
CUDA's own. Written without a GPU at hand: its tests are those marked `gpu`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmserve.engines.torch.model.cuda_graphs import Capture, Graphs, Replay
from llmserve.engines.torch.model.flat_model import FlatModel
from llmserve.engines.torch.model.varlen_attention import Kernel, VarlenAttention, agrees


def speed_up(
    model: FlatModel, *, kernel: Kernel | None, capture: Capture | None, most_rows: int
) -> None:
    """Compute by these from now on, where they are given and the kernel comes out right."""
    if kernel is not None and agrees(kernel, model.geometry):
        model.compute = VarlenAttention(model.compute, kernel)
        model.path += ", prompts in one ragged batch"
    if capture is not None:
        model.compute = Graphs(model.compute, model.geometry, capture, most_rows)
        model.path += ", decodes by recorded graphs"


def varlen() -> Kernel | None:
    """torch's own binding of FlashAttention; None where it is too old to have one."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None

    def attend(
        query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int,
        scaling: float | None,
    ) -> Tensor:
        out = varlen_attn(
            query, key, value, starts, starts, longest, longest,
            scale=scaling, window_size=(-1, 0), enable_gqa=query.shape[1] != key.shape[1],
        )
        assert isinstance(out, Tensor)
        return out

    return attend


class CudaCapture:
    """Records CUDA graphs that share their memory, for only one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        replay: Replay = graph.replay
        return replay
