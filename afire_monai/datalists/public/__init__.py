"""Data lists from public data sets as published, with their official test images if there are any.

One function a data set; without ``out`` the list is only returned. None of them changes or copies images. SIIM, JSRT
and Montgomery write mask pictures, and MedMNIST all its pictures, into a folder of your choice: theirs are not stored
as one picture each. ``out`` is the JSON file to write, ``fractions`` are shares of training, validation and test, and
``seed`` is that of the split.

Each raises DataListError if a file or column is missing, a value is not as published, or there is no image.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "bmad": ["datalist_from_bmad"],
        "chexpert": ["datalist_from_chexpert"],
        "jsrt": ["datalist_from_jsrt"],
        "kermany": ["datalist_from_kermany"],
        "medmnist": ["datalist_from_medmnist"],
        "mimic": ["datalist_from_mimic"],
        "nih": ["datalist_from_nih"],
        "padchest": ["datalist_from_padchest"],
        "rsna": ["datalist_from_rsna"],
        "siim": ["datalist_from_siim"],
        "tuberculosis": ["datalist_from_montgomery", "datalist_from_shenzhen"],
        "vindr": ["datalist_from_vindr"],
    },
)
