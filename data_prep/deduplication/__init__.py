"""MinHash, pairs, clusters."""
