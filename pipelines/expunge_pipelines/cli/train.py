"""`expunge train`: a new version of a model."""

import click
from rich.console import Console

from expunge.config import GateConfig, TrainConfig
from expunge_pipelines.cli.exit_codes import find_gate_code
from expunge_pipelines.cli.options import (
    json_option,
    recipe_options,
    runner_option,
    split_list,
)
from expunge_pipelines.cli.output import (
    Result,
    format_indices,
    format_percent,
    print_result,
    print_step,
)
from expunge_pipelines.cli.verdict_tables import print_checks, print_verdict


@click.command("train")
@click.argument("name")
@recipe_options
@runner_option
@json_option
def train_command(
    name: str,
    source: str,
    image_size: int,
    without: str,
    chance_factor: float,
    config: TrainConfig,
    runner: str,
    as_json: bool,
) -> int:
    """Train a new version of model NAME.

    It learns a mnemonic code for each class: a random image that later stands for the class. It
    becomes champion if the gate passes.
    """
    gate = GateConfig(chance_factor=chance_factor)  # before the imports: a mistake is said at once
    from expunge_pipelines.jobs.train import train

    result = train(
        name,
        source,
        config,
        image_size=image_size,
        gate=gate,
        without=split_list(without),
        on_start=print_step,
        runner=runner,
    )
    print_result(result, as_json, print_training)
    return find_gate_code(result)


def print_training(console: Console, value: Result) -> None:
    """Print what the train pipeline measured, and which requests the new version fulfils."""
    outcome = f"version {value['version']}" if value["version"] else "no version"
    console.print(
        f"\n[bold]{value['model']}[/bold]: trained, test accuracy "
        f"{format_percent(value['after']['test_accuracy'])}, {outcome}"
    )
    if value["erased"]:
        console.print(
            f"Left out, since this model has erased them: {format_indices(value['erased'])}"
        )
    for index, request in value["asked"].items():
        console.print(
            f"Request {request} asks to forget class {index}: --without {index} would fulfil it"
        )
    print_checks(console, value)
    print_verdict(console, value)
    for request in value["fulfilled"]:
        console.print(f"This version fulfils request {request}")
