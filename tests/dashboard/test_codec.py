from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmserve.dashboard.codec import Frame, decode, encode

FILE = Path(__file__).parent / "frame.bin"
FRAME = Frame(
    seq=7,
    times=np.array([0, 0.2, 123456.789]),
    values=np.array([[1, np.nan], [2, -0.5], [3, 16777216]], np.float32),
)


def test_a_frame_is_the_bytes_that_the_browser_side_is_tested_against() -> None:
    assert encode(FRAME) == FILE.read_bytes()


def test_a_frame_reads_back_as_it_was() -> None:
    frame = decode(encode(FRAME))
    assert frame.seq == FRAME.seq
    np.testing.assert_array_equal(frame.times, FRAME.times)
    np.testing.assert_array_equal(frame.values, FRAME.values)


@pytest.mark.parametrize("data", [b"", b"x" * 64, FILE.read_bytes()[:-1], FILE.read_bytes() + b"1"])
def test_bytes_that_are_no_frame_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="frame"):
        decode(data)


def test_an_update_of_one_row_of_all_columns_takes_less_than_two_hundred_bytes() -> None:
    from llmserve.dashboard.panels import COLUMNS

    row = Frame(1, np.zeros(1), np.zeros((1, len(COLUMNS)), np.float32))
    assert len(encode(row)) < 200
