"""A listener that takes radiographs, predicts them and sends the results to an archive."""
