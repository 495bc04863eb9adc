"""Models of HuggingFace: their architectures, weights and tokenizers, in and out."""
