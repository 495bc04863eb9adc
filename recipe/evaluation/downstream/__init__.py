"""Downstream tasks: scored by lm-evaluation-harness on engines and exports, in bits per byte too, and compared."""
