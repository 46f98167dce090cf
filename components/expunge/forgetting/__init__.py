"""Forgetting as a step does it: which rule, on what, and with which images of the class."""
