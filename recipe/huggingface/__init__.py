"""HuggingFace folders: what a run begins from, and what it exports."""
