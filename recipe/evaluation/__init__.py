"""Held-out loss and downstream tasks."""
