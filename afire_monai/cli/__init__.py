"""The console script ``afire``."""
