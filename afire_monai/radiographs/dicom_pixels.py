"""Convert stored DICOM values to a picture in 0…1, bright = dense: modality LUT, VOI, then polarity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from afire_monai.radiographs.picture import stretch

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]
MAX_LEVELS = 1 << 17
"""Up to so many different stored values are computed once each."""
_PART = 1 << 15
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def render(
    stored: Integers, dataset: Any, window_index: int = 0, odd: list[str] | None = None
) -> tuple[NDArray[np.float32], str, bool]:
    """Render stored values as a viewer would, on a scale of 0…1.

    1. Modality LUT sequence, else rescale slope and intercept (DICOM PS3.3 C.11.1).
    2. VOI LUT sequence, else window centre and width with LINEAR, LINEAR_EXACT or SIGMOID (PS3.3 C.11.2); the VOI LUT
       wins where both are present. Without either, or where the window's width is not valid, the minimum…maximum of the
       pixels that are not padding is mapped to 0…1.
    3. MONOCHROME1 is inverted, last. The photometric interpretation alone decides: a presentation LUT shape of INVERSE
       says the same as MONOCHROME1 for radiographs (PS3.3 C.8.11.3.1.2), never a second inversion.
    4. Padding pixels (PixelPaddingValue, up to PixelPaddingRangeLimit) become black, 0.

    Args:
        stored: (H, W) decoded values.
        dataset: the pydicom data set.
        window_index: number of the window or VOI LUT to use if there are several.
        odd: list that gets the keywords of optional elements that make no sense and therefore count as absent.

    Returns:
        Pixels (H, W) float32 in 0…1, the mapping of the intensity in words, and whether polarity was inverted.

    Raises:
        ValueError: if a LUT or window cannot be applied, or all pixels are padding.
    """
    odd = [] if odd is None else odd
    levels, place = _levels(stored)
    padding = _padding(levels, dataset, odd)
    present = _present(levels, stored, place, exactly=padding is not None or bool(dataset.get("ModalityLUTSequence")))
    if padding is not None and padding[present].all():
        raise ValueError("all pixels are padding; nothing is left to show")
    values = _modality(levels, dataset)
    picture, intensity = _voi(values, dataset, window_index, present if padding is None else present & ~padding, odd)
    inverted = str(dataset.PhotometricInterpretation).strip().upper() == "MONOCHROME1"
    if inverted:
        picture = 1.0 - picture
    if padding is not None:
        picture[padding] = 0.0
    pixels = picture.astype(np.float32)
    return pixels if place is None else _look_up(pixels, place), intensity, inverted


def _look_up(table: NDArray[np.float32], place: Integers) -> NDArray[np.float32]:
    """As ``table[place]``; in parts, for NumPy makes indices of 8 bytes from those it is given."""
    looked_up = np.empty(place.shape, dtype=np.float32)
    flat, places = looked_up.reshape(-1), place.reshape(-1)
    for start in range(0, flat.size, _PART):
        part = slice(start, start + _PART)
        table.take(places[part], out=flat[part], mode="wrap")
    return looked_up


def _levels(stored: Integers) -> tuple[Integers, Integers | None]:
    """Return the stored values that there can be, (n,), and each pixel's place among them; negative places count back.

    What a pixel becomes depends on its stored value alone, so a table of some ten thousand entries is computed instead
    of millions of pixels. Where the values are spread too widely for that, the pixels themselves, and None.
    """
    low, high = int(stored.min()), int(stored.max())
    above, below = max(high, 0) + 1, max(-low, 0)
    if above + below > MAX_LEVELS:
        return stored, None
    levels = np.concatenate([np.arange(above), np.arange(-below, 0)])
    return np.clip(levels, low, high), stored


def _present(levels: Integers, stored: Integers, place: Integers | None, exactly: bool) -> NDArray[np.bool_]:
    """Which levels count for the smallest and the largest value; if not exactly, at least the two that are these."""
    if place is None:
        return np.ones(levels.shape, dtype=bool)
    present = np.zeros(levels.shape, dtype=bool)
    present[place if exactly else [stored.min(), stored.max()]] = True
    return present


def _padding(stored: Integers, dataset: Any, odd: list[str]) -> NDArray[np.bool_] | None:
    """Which stored values are padding, of their shape; None where the file names no padding or holds none."""
    bounds = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = dataset.get(keyword)
        if isinstance(value, bytes):
            value = int.from_bytes(value[:2], "little")
        if isinstance(value, int):
            # some devices write it as unsigned although the pixels are signed
            signed = dataset.get("PixelRepresentation") == 1 and value > 0x7FFF
            bounds.append(value - 0x10000 if signed else value)
        elif value is not None:
            odd.append(keyword)
    if not bounds or not isinstance(dataset.get("PixelPaddingValue"), int | bytes):
        return None
    mask = (stored >= min(bounds)) & (stored <= max(bounds))
    return mask if mask.any() else None


def _modality(stored: Integers, dataset: Any) -> Floats:
    if dataset.get("ModalityLUTSequence"):
        return _apply_lut(stored.astype(np.int64), dataset.ModalityLUTSequence[0], dataset, "Modality LUT")[0]
    slope, intercept = _number(dataset, "RescaleSlope", 0, 1.0), _number(dataset, "RescaleIntercept", 0, 0.0)
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise ValueError(
            f"rescale slope {slope} and intercept {intercept} cannot be applied; a slope other than 0 is expected"
        )
    return stored.astype(np.float64) * slope + intercept


def _voi(
    values: Floats, dataset: Any, window_index: int, keep: NDArray[np.bool_], odd: list[str]
) -> tuple[Floats, str]:
    if dataset.get("VOILUTSequence"):
        item = _pick(dataset.VOILUTSequence, window_index, "VOI LUT")
        try:
            looked_up, white = _apply_lut(np.rint(values).astype(np.int64), item, dataset, "VOI LUT")
            return looked_up / white, "VOI LUT"
        except ValueError:
            odd.append("VOILUTSequence")
    if (window := window_of(dataset, window_index, odd)) is not None:
        centre, width, function = window
        return _window(values, *window), f"window {function} {centre:g}/{width:g}"
    return stretch(values, keep), "minimum…maximum of the image"


def window_of(dataset: Any, window_index: int = 0, odd: list[str] | None = None) -> tuple[float, float, str] | None:
    """Return centre, width and function (`FUNCTIONS`) of a data set's window; None if it has none that is valid.

    Args:
        dataset: the pydicom data set.
        window_index: number of the window, if there are several; ValueError if there are fewer.
        odd: as for `render`.
    """
    odd = [] if odd is None else odd
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return None
    function = str(_first(dataset.get("VOILUTFunction")) or "LINEAR").strip().upper()
    if function not in FUNCTIONS:
        odd.append("VOILUTFunction")
        function = "LINEAR"
    centre = _number(dataset, "WindowCenter", window_index, float("nan"))
    width = _number(dataset, "WindowWidth", window_index, float("nan"))
    if np.isfinite([centre, width]).all() and width >= (1 if function == "LINEAR" else np.finfo(float).tiny):
        return centre, width, function
    odd.append("WindowWidth")
    return None


def _window(values: Floats, centre: float, width: float, function: str) -> Floats:
    """Window function of PS3.3 C.11.2.1.2 and C.11.2.1.3 with output range 0…1."""
    if function == "SIGMOID":
        # the exponent is clipped: exp(±500) is far beyond the resolution of float32, and does not overflow
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -500, 500)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)


def _apply_lut(values: NDArray[np.int64], item: Any, dataset: Any, name: str) -> tuple[Floats, float]:
    """Look values up in a LUT sequence item; also its white level."""
    try:
        data, white, first = lut_of(item, dataset)
    except Exception as error:  # pydicom converts elements of an item only here, and raises many types on damaged ones
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise ValueError(f"the {name} cannot be read: {reason}") from error
    if first > 0x7FFF and values.min() < 0:
        first -= 0x10000
    table = data.astype(np.float64)
    return table[np.clip(values - first, 0, len(table) - 1)], float(white)


def lut_of(item: Any, dataset: Any) -> tuple[NDArray[Any], int, int]:
    """Return entries, white level and first mapped value of a LUT sequence item.

    The white level is the largest number of as many bits as the largest entry needs; the depth in the descriptor is not
    believed. Tables of 12-bit entries are often declared 16 bits deep, and would come out nearly black (this project's
    reading). Raises ValueError, or pydicom's error on a damaged element, for an item that is not a LUT.
    """
    count, first, _ = (int(v) for v in item.LUTDescriptor)
    count = count & 0xFFFF or 0x10000  # unsigned, even if the values and hence the descriptor are signed
    data = _lut_data(item.LUTData, count, dataset)
    return data, 2 ** max(int(data.max()).bit_length(), 1) - 1, first


def _lut_data(raw: Any, count: int, dataset: Any) -> NDArray[Any]:
    """Entries of a LUT from numbers (US) or bytes (OW), two bytes an entry, or one where the length says so."""
    if isinstance(raw, bytes):
        little = dataset.original_encoding[1] is not False
        wide = len(raw) >= 2 * count
        raw = np.frombuffer(raw, dtype=("<u2" if little else ">u2") if wide else np.uint8)
    data = np.atleast_1d(np.asarray(raw))[:count]
    if len(data) < count:
        raise ValueError(f"it has {len(data)} entries, but its descriptor says {count}")
    return data


def _number(dataset: Any, keyword: str, index: int, default: float) -> float:
    """One value of a decimal string element that may hold several; the default where it is absent."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return default
    return float(_pick(value, index, keyword) if hasattr(value, "__len__") and not isinstance(value, str) else value)


def _first(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else next(iter(value), None)


def _pick(values: Any, index: int, name: str) -> Any:
    """Entry of a multi-valued element; a file that offers only one has that one for any index."""
    if len(values) == 1:
        return values[0]
    if not 0 <= index < len(values):
        raise ValueError(
            f"window_index is {index}, but the file has {len(values)} values of {name}; use 0 to {len(values) - 1}"
        )
    return values[index]
