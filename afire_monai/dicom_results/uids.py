"""New unique identifiers for new objects."""

from __future__ import annotations

import uuid

_NAMESPACE = uuid.UUID("5b1c9c2e-8f0d-5a44-9d53-6f2a1f3e7c10")


class NewUids:
    """Make UIDs under 2.25, the root for UUIDs (DICOM PS3.5 B.2), so that no registered root is needed.

    Args:
        seed: None for random ones, as every delivery should have. With a seed the same source and purpose give the same
            UID again, for tests: a PACS takes two objects with one UID for the same object.
    """

    def __init__(self, seed: str | None = None) -> None:
        self.seed = seed

    def new(self, *purpose: str) -> str:
        """Make one.

        Args:
            purpose: what it is for; only counts with a seed.
        """
        return random_uid() if self.seed is None else named_uid(self.seed, *purpose)


def random_uid() -> str:
    """Make a UID that nobody has made before."""
    return f"2.25.{uuid.uuid4().int}"


def named_uid(*names: str) -> str:
    """Make the UID that belongs to these names, always the same."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(map(repr, names))).int}"
