"""The MoE decoder: configuration, routing arithmetic and layers. Knows nothing of DeepSpeed."""

from recipe.model.configuration import RecipeMoeConfig
from recipe.model.modeling import RecipeMoeForCausalLM, RecipeMoeModel

__all__ = ["RecipeMoeConfig", "RecipeMoeForCausalLM", "RecipeMoeModel"]
