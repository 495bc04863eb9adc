"""Training under DeepSpeed: engine, loop, checkpoints, metrics, evaluation, export. The only floor that imports it."""
