"""Predictions of a trained model for radiographs, and the format in which they are stored."""
