"""Command line `expunge`: one file a command.

To add a command:

1. Write a file in this folder with a click command. It parses, calls a job of
   `expunge_pipelines.jobs`, prints the result with `output.print_result` and returns the exit code.
2. Add a line to `COMMANDS`: the name that a user types, and where the command lies.

Import what is heavy (torch, mlflow, kfp) inside the command's function: `expunge --help` imports
every file that the table names.
"""

# In the order of `expunge --help`: the way of a model first, then what an operator needs.
COMMANDS = {
    "demo": "expunge_pipelines.cli.demo:demo",
    "train": "expunge_pipelines.cli.train:train_command",
    "forget": "expunge_pipelines.cli.forget:forget_command",
    "oracles": "expunge_pipelines.cli.oracles:oracles",
    "models": "expunge_pipelines.cli.models:models",
    "rollback": "expunge_pipelines.cli.models:rollback_command",
    "reconcile": "expunge_pipelines.cli.models:reconcile_command",
    "ui": "expunge_pipelines.cli.ui:ui",
    "request": "expunge_pipelines.cli.request:request",
    "run-requests": "expunge_pipelines.cli.run_requests:run_requests_command",
    "compile": "expunge_pipelines.cli.compile:compile_command",
    "submit": "expunge_pipelines.cli.submit:submit",
    "schedule": "expunge_pipelines.cli.schedule:schedule",
}
