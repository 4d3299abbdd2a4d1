"""One file in, one picture or mask out."""
