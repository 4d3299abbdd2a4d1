"""The model folder: what lies in it, saved and loaded; released weights."""
