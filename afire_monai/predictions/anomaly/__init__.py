"""Anomaly detection without labels: what in a radiograph is unlike the same place in normal ones."""
