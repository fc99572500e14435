"""The bytes of one chart update. `widgets/src/codec.ts` is its twin; a fixture ties the two.

Little-endian: a header of four u32 (magic, sequence number, rows, columns), the rows' times as f64,
then each column's values as f32, one column after the other. NaN stands for "no value then".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAGIC = 0x3144534C  # "LSD1"
_HEADER = struct.Struct("<4I")


@dataclass(frozen=True, slots=True)
class Frame:
    seq: int
    times: NDArray[np.float64]
    values: NDArray[np.float32]
    """Shape [rows, columns]."""


def encode(frame: Frame) -> bytes:
    rows, columns = frame.values.shape
    head = _HEADER.pack(MAGIC, frame.seq, rows, columns)
    times = frame.times.astype("<f8", copy=False).tobytes()
    return head + times + frame.values.T.astype("<f4", copy=False).tobytes()


def decode(data: bytes) -> Frame:
    """Return what `encode` was given; ValueError for anything else."""
    if len(data) < _HEADER.size:
        raise ValueError("a frame has at least a header of 16 bytes")
    magic, seq, rows, columns = _HEADER.unpack_from(data)
    if magic != MAGIC or len(data) != _HEADER.size + 8 * rows + 4 * rows * columns:
        raise ValueError("not a frame: wrong magic number or length")
    times = np.frombuffer(data, "<f8", rows, _HEADER.size)
    flat = np.frombuffer(data, "<f4", rows * columns, _HEADER.size + 8 * rows)
    return Frame(seq, times, flat.reshape(columns, rows).T)
