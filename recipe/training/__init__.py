"""One attempt of a run: start, loop, stop."""
