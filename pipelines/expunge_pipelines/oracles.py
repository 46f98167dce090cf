"""The oracles pipeline: models retrained without classes, for a forget to be compared with."""

from collections.abc import Sequence
from typing import List

from kfp import dsl
from kfp.dsl import PipelineConfig
from kfp.dsl.base_component import BaseComponent

from expunge import ops
from expunge_pipelines.placement import Place


def build_oracles(
    place: Place, one_by_one: Sequence[int] = (), config: PipelineConfig | None = None
) -> BaseComponent:
    """The pipeline, with `place` giving each task its resources, and `config` the whole of it.

    It trains an oracle for each seed of its parameter `seeds`, all at once where the cluster can.
    With seeds in `one_by_one` it has a task of its own for each step of each of these instead, and
    `seeds` is not read: in a loop, kfp's local runner goes on with the other turns when one has
    failed or an interrupt came.
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
        without: List[int],
        arch: str,
        seeds: List[int],
        image_size: int = 0,
        epochs: int = 20,
        batch_size: int = 128,
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: str = "cosine",
        t_mix: float = 0.1,
        weights: str = "",
        precision: str = "auto",
        augment: str = "auto",
        processes: int = 1,
        nodes: int = 1,
        workers: int = 2,
    ) -> None:
        """An oracle that is registered already is not trained again."""
        data = place(ops.prepare_data(source=source, image_size=image_size))

        def keep(seed: int) -> None:
            found = place(
                ops.find_oracle(
                    dataset=data.outputs["dataset"],
                    name=name,
                    version=version,
                    classes=without,
                    seed=seed,
                    weights=weights,
                )
            )
            with dsl.If(found.outputs["Output"] == False, "not-there-yet"):  # noqa: E712
                trained = place(
                    ops.train(
                        dataset=data.outputs["dataset"],
                        name=name,
                        arch=arch,
                        epochs=epochs,
                        batch_size=batch_size,
                        learning_rate=learning_rate,
                        momentum=momentum,
                        weight_decay=weight_decay,
                        schedule=schedule,
                        t_mix=t_mix,
                        seed=seed,
                        without=without,
                        weights=weights,
                        precision=precision,
                        augment=augment,
                        processes=processes,
                        nodes=nodes,
                        workers=workers,
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

        if one_by_one:
            for seed in one_by_one:
                keep(seed)
        else:
            with dsl.ParallelFor(seeds, "each-seed") as seed:
                keep(seed)

    return oracles
