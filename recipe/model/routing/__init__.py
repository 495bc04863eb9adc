"""Router arithmetic, one idea a file: which experts, which losses, which limits. Knows nothing of DeepSpeed.

Everything here is fp32, whatever the model's precision: routing compares scores that differ in the third
digit, and bf16 has two.
"""
