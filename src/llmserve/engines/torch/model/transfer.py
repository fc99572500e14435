"""To a GPU and back without waiting for it more often than must be.

Its work runs behind the calls that ask for it. A plain copy in either direction waits for all of
it; one from pinned memory does not, and of the ways back one wait serves all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def upload(values: Tensor | Sequence[Any], device: torch.device) -> Tensor:
    """The values there, not waiting for what the device is doing."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def fetch(*tensors: Tensor) -> list[list[Any]]:
    """What they hold, all of one device, waiting for it once."""
    if not tensors[0].is_cuda:
        return [tensor.tolist() for tensor in tensors]
    here = [
        torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
            tensor, non_blocking=True
        )
        for tensor in tensors
    ]
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
    done.record()
    done.synchronize()
    return [tensor.tolist() for tensor in here]
