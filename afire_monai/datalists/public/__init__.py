"""Public data sets as published → data lists, with their official test images where they have such.

One function a data set; without ``out`` the list is only returned. None of them changes or copies images; SIIM,
JSRT and Montgomery write mask pictures into a folder of your choice, as theirs are not stored as one picture each.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afire_monai.datalists.public.chexpert import datalist_from_chexpert
    from afire_monai.datalists.public.jsrt import datalist_from_jsrt
    from afire_monai.datalists.public.kermany import datalist_from_kermany
    from afire_monai.datalists.public.mimic import datalist_from_mimic
    from afire_monai.datalists.public.nih import datalist_from_nih
    from afire_monai.datalists.public.rsna import datalist_from_rsna
    from afire_monai.datalists.public.siim import datalist_from_siim
    from afire_monai.datalists.public.tuberculosis import datalist_from_montgomery, datalist_from_shenzhen
    from afire_monai.datalists.public.vindr import datalist_from_vindr

_HOME = {
    "datalist_from_chexpert": "chexpert",
    "datalist_from_jsrt": "jsrt",
    "datalist_from_kermany": "kermany",
    "datalist_from_mimic": "mimic",
    "datalist_from_montgomery": "tuberculosis",
    "datalist_from_nih": "nih",
    "datalist_from_rsna": "rsna",
    "datalist_from_shenzhen": "tuberculosis",
    "datalist_from_siim": "siim",
    "datalist_from_vindr": "vindr",
}
__all__ = [
    "datalist_from_chexpert",
    "datalist_from_jsrt",
    "datalist_from_kermany",
    "datalist_from_mimic",
    "datalist_from_montgomery",
    "datalist_from_nih",
    "datalist_from_rsna",
    "datalist_from_shenzhen",
    "datalist_from_siim",
    "datalist_from_vindr",
]


def __getattr__(name: str) -> Any:
    """Import the module that a public name lives in, when the name is first used."""
    if name in _HOME:
        return getattr(import_module(f"afire_monai.datalists.public.{_HOME[name]}"), name)
    raise AttributeError(f"module 'afire_monai.datalists.public' has no attribute {name!r}")
