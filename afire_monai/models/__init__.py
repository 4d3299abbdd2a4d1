"""The model folder, saved and loaded; released weights."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["bundle_model", "folder", "initial"])
