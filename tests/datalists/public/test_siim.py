from __future__ import annotations

import numpy as np
import pytest

from afire_monai.core.errors import DataListError
from afire_monai.datalists.public.siim import decode_relative_rle


def slow_decode(text: str, height: int, width: int) -> list[list[int]]:
    """Walk down the columns as the challenge's own helper does."""
    flat = [0] * (height * width)
    position = 0
    numbers = [int(word) for word in text.split()]
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        position += gap
        for _ in range(length):
            flat[position] = 1
            position += 1
    return [[flat[column * height + row] for column in range(width)] for row in range(height)]


def test_hand_made_runs_go_down_columns_with_gaps_from_the_run_before() -> None:
    # 3 rows, 4 columns; skip 1 pixel, 2 set; skip 3, 1 set: rows 1 and 2 of column 0, then row 0 of column 2
    np.testing.assert_array_equal(
        decode_relative_rle("1 2 3 1", 3, 4, "rle"), [[0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    )


def test_minus_one_is_empty_also_with_a_blank_before_it() -> None:
    assert not decode_relative_rle("-1", 2, 2, "table").any()
    assert not decode_relative_rle(" -1", 2, 2, "table").any()


@pytest.mark.parametrize("seed", range(20))
def test_random_runs_equal_the_slow_decoder(seed: int) -> None:
    draw = np.random.default_rng(seed)
    numbers = draw.integers(0, 9, 2 * draw.integers(1, 12))
    text = " ".join(map(str, numbers))
    np.testing.assert_array_equal(decode_relative_rle(text, 17, 13, "table"), slow_decode(text, 17, 13))


@pytest.mark.parametrize("text", ["", "1", "1 2 3", "a b", "-1 2", "1 -2", "1.5 2", "99999999999999999999 1"])
def test_what_is_no_run_length_is_refused(text: str) -> None:
    with pytest.raises(DataListError, match=r"train-rle: .*pairs of gap and length"):
        decode_relative_rle(text, 4, 4, "train-rle")


def test_runs_beyond_the_picture_are_refused() -> None:
    with pytest.raises(DataListError, match="end at pixel 17 of 16"):
        decode_relative_rle("0 8 8 1", 4, 4, "table")
