"""Figures with intervals over patients, computed once."""
