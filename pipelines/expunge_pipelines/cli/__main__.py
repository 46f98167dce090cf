"""The command as `python -m expunge_pipelines.cli`."""

from expunge_pipelines.cli.main import run

run()
