"""How long a step takes: kernels, links, and what overlaps."""
