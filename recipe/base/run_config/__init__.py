"""Sections of the run config that fill files of their own, and the phases that they make."""
