"""What a loss costs: the law's tokens, what a large batch adds to them, and the days and dollars of a plan."""
