"""The pipelines of expunge and the command that runs them."""
