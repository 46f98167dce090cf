"""Pipelines on this machine: as processes or in containers."""
