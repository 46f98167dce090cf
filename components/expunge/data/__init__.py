"""Data sources and what they write: see `expunge.formats.files` for the format."""
