"""What becomes of stored values, by hand: padding, windows, tables, and values that make no sense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from afire_monai.radiographs.dicom_pixels import MAX_LEVELS, render

U, S = np.uint16, np.int16


def header(**elements: Any) -> Dataset:
    dataset = Dataset()
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def table(entries: Any, first: int = 0, count: int | None = None) -> list[Any]:
    """What a sequence of one look-up table looks like to whoever reads it."""

    class Item:
        LUTDescriptor = (len(entries) if count is None else count, first, 16)
        LUTData = entries

    return [Item()]


class Raw(dict):
    """A data set whose elements may be of any kind."""

    original_encoding = (False, True)

    def __init__(self, **elements: Any) -> None:
        super().__init__({"PhotometricInterpretation": "MONOCHROME2", **elements})

    def __getattr__(self, name: str) -> Any:
        return self[name]


@pytest.mark.parametrize(
    ("stored", "signed", "padding"),
    [
        (np.array([[65535, 10, 20]], U), 0, 65535),  # unsigned values above 32767 are what they say
        (np.array([[32768, 10, 20]], U), 0, 32768),
        (np.array([[-2000, 10, 20]], S), 1, 63536),  # signed pixels, padding written as unsigned
        (np.array([[-32768, 10, 20]], S), 1, 32768),
        (np.array([[32767, 10, 20]], S), 1, 32767),
        (np.array([[65535, 10, 20]], U), 0, b"\xff\xff\x07"),
        (np.array([[258, 10, 20]], U), 0, b"\x02\x01"),
    ],
)
def test_padding_by_its_sign_is_black_and_does_not_count(stored: Any, signed: int, padding: Any) -> None:
    pixels, words, inverted = render(stored, Raw(PixelRepresentation=signed, PixelPaddingValue=padding))
    assert pixels.tolist() == [[0, 0, 1]]
    assert pixels.dtype == np.float32
    assert (words, inverted) == ("minimum…maximum of the image", False)


def test_padding_limits_count_both_and_alone_mean_nothing() -> None:
    stored = np.array([[1, 2, 3, 4, 8]], U)
    for first, second in ((1, 3), (3, 1)):
        dataset = Raw(PixelPaddingValue=first, PixelPaddingRangeLimit=second)
        assert render(stored, dataset)[0].tolist() == [[0, 0, 0, 0, 1]]
        # inverted: what is not padding is turned round, padding stays black
        dataset["PhotometricInterpretation"] = " monochrome1 "
        pixels, _, inverted = render(stored, dataset)
        assert pixels.tolist() == [[0, 0, 0, 1, 0]]
        assert inverted
    odd: list[str] = []
    whole = render(stored, Raw(PixelPaddingRangeLimit=3), odd=odd)[0]
    np.testing.assert_allclose(whole, [[0, 1 / 7, 2 / 7, 3 / 7, 1]], rtol=1e-6)
    assert odd == []
    render(stored, Raw(PixelPaddingValue="none"), odd=odd)
    assert odd == ["PixelPaddingValue"]
    with pytest.raises(ValueError, match="all pixels are padding"):
        render(np.array([[7, 7]], U), Raw(PixelPaddingValue=7))


def test_values_spread_too_widely_for_a_table_come_out_the_same() -> None:
    near, far = np.array([[-5, 0, 5, 10]], np.int32), np.array([[-5, 0, 5, 10]], np.int32) * (MAX_LEVELS // 4)
    for padding, expected in ((None, [[0, 1 / 3, 2 / 3, 1]]), (10, [[0, 0.5, 1, 0]])):
        for values, scale in ((near, 1), (far, MAX_LEVELS // 4)):
            dataset = Raw() if padding is None else Raw(PixelPaddingValue=padding * scale)
            np.testing.assert_allclose(render(values, dataset)[0], expected, atol=1e-6)


@pytest.mark.parametrize("size", [1 << 15, (1 << 15) + 1])
def test_pictures_of_more_than_one_part_are_looked_up_to_their_end(size: int) -> None:
    stored = np.arange(size, dtype=np.int32)[None] % 1000 - 500
    np.testing.assert_allclose(render(stored, Raw())[0], (stored + 500) / 999, atol=1e-6)


def test_rescaling_comes_first_and_impossible_slopes_are_refused() -> None:
    stored = np.array([[0, 1, 2, 3, 4]], U)
    dataset = header(RescaleSlope=2, RescaleIntercept=-4, WindowCenter=0, WindowWidth=8, VOILUTFunction="LINEAR_EXACT")
    pixels, words, _ = render(stored, dataset)
    assert pixels.tolist() == [[0, 0.25, 0.5, 0.75, 1]]
    assert words == "window LINEAR_EXACT 0/8"
    several = header(RescaleSlope=[1, 9], RescaleIntercept=[0, 9], WindowCenter=2.5, WindowWidth=5)
    assert render(stored, several)[0].tolist() == [[0, 0.25, 0.5, 0.75, 1]]
    assert render(stored, header(RescaleSlope=-1))[0].tolist() == [[1, 0.75, 0.5, 0.25, 0]]
    for wrong in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="cannot be applied"):
            render(stored, Raw(RescaleSlope=wrong))
        with pytest.raises(ValueError, match="cannot be applied"):
            render(stored, Raw(RescaleIntercept=float("inf")))


def test_windows_by_hand() -> None:
    stored = np.array([[0, 1, 2, 3, 4]], U)
    # LINEAR: (x − (c − 0.5)) / (w − 1) + 0.5
    linear = render(stored, header(WindowCenter=2.5, WindowWidth=5))
    assert (linear[0].tolist(), linear[1]) == ([[0, 0.25, 0.5, 0.75, 1]], "window LINEAR 2.5/5")
    # a width of 1 is a step just above c − 0.5
    assert render(stored, header(WindowCenter=2.5, WindowWidth=1))[0].tolist() == [[0, 0, 0, 1, 1]]
    sigmoid = render(stored, header(WindowCenter=2, WindowWidth=2, VOILUTFunction="sigmoid "))[0]
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-2.0 * (stored - 2.0))), rtol=1e-6)
    narrow = render(np.array([[0, 2, 4]], U), header(WindowCenter=2, WindowWidth=1e-3, VOILUTFunction="SIGMOID"))[0]
    assert narrow.tolist() == [[0, 0.5, 1]]
    exact = render(stored, header(WindowCenter=2, WindowWidth=0.5, VOILUTFunction="LINEAR_EXACT"))[0]
    assert exact.tolist() == [[0, 0, 0.5, 1, 1]]


@pytest.mark.parametrize(
    ("elements", "seen"),
    [
        ({"WindowCenter": 2, "WindowWidth": 0.5}, ["WindowWidth"]),
        ({"WindowCenter": 2, "WindowWidth": 0, "VOILUTFunction": "LINEAR_EXACT"}, ["WindowWidth"]),
        ({"WindowCenter": float("nan"), "WindowWidth": 5}, ["WindowWidth"]),
        ({"WindowCenter": 2.5, "WindowWidth": 5, "VOILUTFunction": "CUBIC"}, ["VOILUTFunction"]),
        ({"WindowCenter": 2.5}, []),
        ({"WindowWidth": 5}, []),
    ],
)
def test_windows_that_make_no_sense_count_as_absent(elements: dict[str, Any], seen: list[str]) -> None:
    odd: list[str] = []
    assert render(np.array([[0, 1, 2, 3, 4]], U), Raw(**elements), odd=odd)[0].tolist() == [[0, 0.25, 0.5, 0.75, 1]]
    assert odd == seen


def test_one_of_several_windows_is_chosen_and_none_beyond_them() -> None:
    stored = np.array([[0, 1, 2, 3, 4]], U)
    dataset = header(WindowCenter=[2.5, 1.5], WindowWidth=[5, 3])
    assert render(stored, dataset)[0].tolist() == [[0, 0.25, 0.5, 0.75, 1]]
    assert render(stored, dataset, window_index=1)[0].tolist() == [[0, 0.5, 1, 1, 1]]
    assert render(stored, header(WindowCenter=2.5, WindowWidth=5), window_index=7)[0].tolist() == [
        [0, 0.25, 0.5, 0.75, 1]
    ]
    for index in (2, -1):
        with pytest.raises(ValueError, match=f"window_index is {index}, but the file has 2 values.*use 0 to 1"):
            render(stored, dataset, window_index=index)


def test_tables_by_hand() -> None:
    stored = np.array([[0, 1, 2, 9]], U)
    # the largest entry 5 needs three bits: white is 7; what lies outside takes the first or the last entry
    pixels, words, _ = render(stored, Raw(VOILUTSequence=table([1, 3, 5], first=1)))
    np.testing.assert_allclose(pixels, [[1 / 7, 1 / 7, 3 / 7, 5 / 7]], rtol=1e-6)
    assert words == "VOI LUT"
    assert render(stored, Raw(VOILUTSequence=table([0, 0, 0])))[0].tolist() == [[0, 0, 0, 0]]
    # a modality table comes before everything: 0, 10, 20, 20
    assert render(stored, Raw(ModalityLUTSequence=table([0, 10, 20])))[0].tolist() == [[0, 0.5, 1, 1]]
    # of signed values a first value above 32767 is a negative one
    signed = np.array([[-2, -1, 0]], S)
    np.testing.assert_allclose(
        render(signed, Raw(VOILUTSequence=table([0, 1, 3], 65534)))[0], [[0, 1 / 3, 1]], rtol=1e-6
    )
    high = render(np.array([[32768, 32769]], U), Raw(VOILUTSequence=table([0, 1], 32768)))[0]
    assert high.tolist() == [[0, 1]]
    assert render(np.array([[0, 32768, 32769]], U), Raw(VOILUTSequence=table([0, 1], 32768)))[0].tolist() == [[0, 0, 1]]
    # the only table is that of any index
    assert render(np.array([[0, 1]], U), Raw(VOILUTSequence=table([1, 0])), window_index=7)[0].tolist() == [[1, 0]]
    # 40,000 entries in a signed descriptor, and a first value of 32,767, which is not negative
    ends = np.array([[0, 65535]], U)
    many = Raw(VOILUTSequence=table(np.arange(40000)[::-1], count=40000 - 65536))
    np.testing.assert_allclose(render(ends, many)[0], [[39999 / 65535, 0]], rtol=1e-6)
    first = Raw(VOILUTSequence=table([0, 1], 32767))
    assert render(np.array([[-1, 32767, 32768]], np.int32), first)[0].tolist() == [[0, 0, 1]]
    # 65,536 entries are written as 0
    assert render(ends, Raw(VOILUTSequence=table(np.arange(65536)[::-1], count=0)))[0].tolist() == [[1, 0]]
    assert render(np.array([[0, 65535]], U), Raw(VOILUTSequence=table(np.arange(65536), count=0)))[0].tolist() == [
        [0, 1]
    ]


@pytest.mark.parametrize(
    ("entries", "encoding", "count"),
    [
        (b"\x00\x00\x01\x00\x03\x00", (False, True), 3),
        (b"\x00\x00\x00\x01\x00\x03", (False, False), 3),
        (b"\x00\x01\x03\x00", (False, True), 3),  # a byte each, and one to fill up
        ([0, 1, 3, 99], (False, True), 3),
    ],
)
def test_entries_of_bytes_and_numbers(entries: Any, encoding: tuple[bool, bool], count: int) -> None:
    dataset = Raw(VOILUTSequence=table(entries, count=count))
    dataset.__dict__["original_encoding"] = encoding
    np.testing.assert_allclose(render(np.array([[0, 1, 2]], U), dataset)[0], [[0, 1 / 3, 1]], rtol=1e-6)


def test_tables_that_are_too_short_are_refused_or_count_as_absent() -> None:
    stored = np.array([[0, 1, 2]], U)
    with pytest.raises(ValueError, match="Modality LUT cannot be read: it has 2 entries, but its descriptor says 3"):
        render(stored, Raw(ModalityLUTSequence=table([1, 2], count=3)))
    odd: list[str] = []
    assert render(stored, Raw(VOILUTSequence=table([1, 2], count=3)), odd=odd)[0].tolist() == [[0, 0.5, 1]]
    assert odd == ["VOILUTSequence"]
