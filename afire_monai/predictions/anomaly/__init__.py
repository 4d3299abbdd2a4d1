"""Anomaly detection without labels: find places that are unlike the same places in normal radiographs."""
