"""Formats on disk: one save and one load function for each; safetensors and JSON, never pickle."""
