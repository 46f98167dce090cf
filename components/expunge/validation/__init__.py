"""Validation of one run: measure, check, attack, decide."""
