"""`expunge compile`: the pipelines as YAML, for Kubeflow."""

from pathlib import Path

import click
from rich.console import Console

from expunge_pipelines.cli.options import cluster_option, json_option
from expunge_pipelines.cli.output import Result, print_result
from expunge_pipelines.kubeflow.settings import ClusterSettings


@click.command("compile")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@cluster_option
@json_option
def compile_command(folder: Path, settings: ClusterSettings, as_json: bool) -> None:
    """Write the pipelines and components as YAML into FOLDER."""
    from expunge_pipelines.kubeflow.compile import compile_all

    print_result({"files": compile_all(folder, settings)}, as_json, print_files)


def print_files(console: Console, value: Result) -> None:
    """Print the files that were written."""
    for path in value["files"]:
        console.print(path, markup=False)  # a path may have square brackets
