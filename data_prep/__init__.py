"""Standalone data jobs: raw documents to packed tokens. Imports from `recipe` only the shard format and the errors."""

import recipe as _recipe  # noqa: F401  so that a missing package is explained
