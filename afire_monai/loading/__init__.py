"""From a data list to batches: data set, order, caches."""
