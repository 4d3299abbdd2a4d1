"""The page about a pre-training run."""
