"""Oracles pipeline: models retrained without classes, for a forget to be compared with."""

from collections.abc import Sequence
from typing import Any, Dict, List

from kfp import dsl
from kfp.dsl import PipelineConfig
from kfp.dsl.base_component import BaseComponent

from expunge import ops
from expunge.config import ORACLE_RECIPE, TrainConfig
from expunge_pipelines.placement import Place

# What the form in Kubeflow's UI is filled with, for a person to change.
RECIPE = {key: value for key, value in TrainConfig.list_defaults().items() if key in ORACLE_RECIPE}


def build_oracles(
    place: Place, one_by_one: Sequence[int] = (), config: PipelineConfig | None = None
) -> BaseComponent:
    """Return the pipeline: `place` gives each task its resources, `config` is of the whole.

    It trains an oracle for each seed of its parameter `seeds`, all at once where the cluster can.
    With seeds in `one_by_one` each step of each of these has a task of its own instead, and
    `seeds` is not read.
    """

    @dsl.pipeline(
        name="expunge-oracles",
        description="Retrain without classes, once for each seed, export and register.",
        pipeline_config=config,
    )
    def oracles(
        name: str,
        version: int,
        source: str,
        seeds: List[int],
        recipe: Dict[str, Any] = RECIPE,
        image_size: int = 0,
    ) -> None:
        """Train the oracles of version `version`; one that is registered is not trained again.

        `recipe` is the version's `TrainConfig`, with the classes of the request in its `without`.
        """
        data = place(ops.prepare_data(source=source, image_size=image_size))

        def make_oracle(seed: int) -> None:
            found = place(
                ops.find_oracle(
                    dataset=data.outputs["dataset"],
                    name=name,
                    version=version,
                    recipe=recipe,
                    seed=seed,
                )
            )
            with dsl.If(found.outputs["Output"] == False, "not-there-yet"):  # noqa: E712
                trained = place(
                    ops.train(
                        dataset=data.outputs["dataset"],
                        name=name,
                        recipe=recipe,
                        seed=seed,
                        kind="oracles",
                        code=data.outputs["code"],
                        data=f"{data.outputs['digest']} {found.outputs['start']}",
                    )
                )
                exported = place(
                    ops.export_onnx(
                        model=trained.outputs["model"],
                        code=data.outputs["code"],
                        data=trained.outputs["digest"],
                    )
                )
                place(
                    ops.keep_oracle(
                        model=trained.outputs["model"],
                        onnx=exported.outputs["onnx"],
                        report=trained.outputs["report"],
                        name=name,
                        version=version,
                    )
                )

        # In a loop, kfp's local runner goes on with the other turns when one has failed or an
        # interrupt came. So a run here has no loop.
        if one_by_one:
            for seed in one_by_one:
                make_oracle(seed)
        else:
            with dsl.ParallelFor(seeds, "each-seed") as seed:
                make_oracle(seed)

    return oracles
