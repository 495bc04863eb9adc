"""A DeepSpeed pretraining recipe for bilingual Mixture-of-Experts language models."""

from recipe.base.errors import explain_missing_packages

__version__ = "0.2.0"

explain_missing_packages()
