"""Saving, loading, resharding and exporting what an engine holds."""
