"""Hosts: where ranks run and how they are reached."""
