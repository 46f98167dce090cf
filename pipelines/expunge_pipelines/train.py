"""The train pipeline: from a data source to a champion that can forget."""

from typing import List

from kfp import dsl
from kfp.dsl import PipelineConfig
from kfp.dsl.base_component import BaseComponent

from expunge import ops
from expunge_pipelines.placement import Place


def build_train(place: Place, config: PipelineConfig | None = None) -> BaseComponent:
    """The pipeline, with `place` giving each task its resources, and `config` the whole of it."""

    @dsl.pipeline(
        name="expunge-train",
        description="Train with mnemonic codes, validate, export, register and promote.",
        pipeline_config=config,
    )
    def train(
        name: str,
        source: str,
        arch: str,
        image_size: int = 0,
        epochs: int = 20,
        batch_size: int = 128,
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: str = "cosine",
        t_mix: float = 0.1,
        seed: int = 0,
        without: List[int] = [],
        weights: str = "",
        init_from: str = "",
        precision: str = "auto",
        augment: str = "auto",
        processes: int = 1,
        nodes: int = 1,
        workers: int = 2,
        chance_factor: float = 3.0,
        onnx_atol: float = 1e-5,
        expected: int = -1,
    ) -> None:
        """Nothing is registered unless the gate passes.

        `expected` is the champion that the new version may replace, 0 for none; with -1 it is the
        one that serves when the run starts, and classes that were erased are left out too.
        """
        plan = place(
            ops.plan_training(
                name=name,
                arch=arch,
                without=without,
                expected=expected,
                weights=weights,
                init_from=init_from,
            )
        )
        data = place(ops.prepare_data(source=source, image_size=image_size)).after(plan)
        code = data.outputs["code"]
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
                without=plan.outputs["without"],
                weights=weights,
                init_from=plan.outputs["init_from"],
                precision=precision,
                augment=augment,
                processes=processes,
                nodes=nodes,
                workers=workers,
                code=code,
                data=f"{data.outputs['digest']} {plan.outputs['start']}",
            )
        )
        model, digest = trained.outputs["model"], trained.outputs["digest"]
        exported = place(ops.export_onnx(model=model, code=code, data=digest))
        gate = place(
            ops.validate(
                dataset=data.outputs["dataset"],
                model=model,
                onnx=exported.outputs["onnx"],
                chance_factor=chance_factor,
                onnx_atol=onnx_atol,
                code=code,
                data=f"{data.outputs['digest']} {digest} {exported.outputs['digest']}",
            )
        )
        recorded = place(
            ops.log_run(
                kind="train",
                name=name,
                validation=gate.outputs["report"],
                export=exported.outputs["report"],
                work=trained.outputs["report"],
            )
        )
        with dsl.If(gate.outputs["Output"] == True, "gate-passed"):  # noqa: E712 (kfp's condition)
            fisher = place(ops.compute_fim(model=model, code=code, data=digest)).after(recorded)
            registered = place(
                ops.register(
                    kind="train",
                    name=name,
                    model=model,
                    fisher=fisher.outputs["fisher"],
                    onnx=exported.outputs["onnx"],
                    validation=gate.outputs["report"],
                )
            )
            place(
                ops.promote(name=name, version=registered.output, expected=plan.outputs["expected"])
            )

    return train
