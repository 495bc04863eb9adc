"""A run as it is asked for and as it lies on disk; no torch."""
