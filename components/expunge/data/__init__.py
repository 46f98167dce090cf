"""Data sources and what they write: see `expunge.artifacts` for the format."""
