"""Standalone data jobs: raw documents to packed tokens. Imports from `recipe` only the shard format and the errors."""
