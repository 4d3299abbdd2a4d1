"""From a hospital's archive to a data list, and results back; the source is only ever read."""

from __future__ import annotations
