"""Pipelines on a cluster: compile, upload, start, follow, schedule."""
