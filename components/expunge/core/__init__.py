"""Pure functions on tensors: no files, no device choice, no global seeds, no tracking."""
