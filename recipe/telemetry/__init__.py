"""What a run measures of itself and writes."""
