"""Checks, grades and the battery of attacks."""
