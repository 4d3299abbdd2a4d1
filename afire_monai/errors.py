"""Errors that a user can act on: each names the file or key, what was seen, what was expected, and the way out."""

from __future__ import annotations


class AfireError(ValueError):
    """Base of all errors that this package raises for bad input."""


class RadiographError(AfireError):
    """A file is not a radiograph that can be used (corrupt, colour, multi-frame, unsupported, empty)."""


class DataListError(AfireError):
    """A data list is wrong: a key, a missing file, a patient in two splits."""


class CheckpointError(AfireError):
    """A checkpoint or a weights file cannot be read, or does not fit the network."""


class TrainingHaltedError(AfireError):
    """Training stopped itself because going on would waste the run (a loss that is not finite)."""
