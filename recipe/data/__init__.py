"""Packed token shards and the order in which training reads them. Knows neither model nor engine."""
