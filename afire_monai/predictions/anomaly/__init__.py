"""Anomaly detection without labels: find what is unlike the same place in normal radiographs."""
