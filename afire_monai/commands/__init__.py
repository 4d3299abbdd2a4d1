"""What the console script ``afire`` can do; each module imports its heavy parts only when it is called."""
