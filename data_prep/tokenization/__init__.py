"""Encoding text and foreign shards."""
