"""The formats on disk: one save and one load function for each."""
