"""Data sources, and batches of what they write; the format is `expunge.formats.dataset`'s."""
