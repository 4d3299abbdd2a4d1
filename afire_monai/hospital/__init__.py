"""Radiographs from a hospital's archive into a data list, and what comes back; the source is only ever read."""

from __future__ import annotations
