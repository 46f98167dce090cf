"""Where a pipeline leaves each task's resources to somebody else: the hook that gives them."""

from collections.abc import Callable

from kfp.dsl import PipelineTask

# Gives a task its resources and returns it, for chaining.
Place = Callable[[PipelineTask], PipelineTask]


def no_resources(task: PipelineTask) -> PipelineTask:
    """Return the task as it is, for a run on this machine.

    A local run asks for nothing: kfp would sit through the pauses between retries.
    """
    return task
