"""The command `expunge`: one file for each subcommand."""
