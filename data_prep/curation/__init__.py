"""Repair, language, rules and masks."""
