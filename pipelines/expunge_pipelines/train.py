"""The train pipeline: from a data source to a champion that can forget."""

from typing import List

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from expunge import ops
from expunge_pipelines.resources import Place


def build_train(place: Place) -> BaseComponent:
    """The pipeline, with `place` giving each task its resources."""

    @dsl.pipeline(
        name="expunge-train",
        description="Train with mnemonic codes, validate, export, register and promote.",
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
        expected: int = 0,
    ) -> None:
        """Nothing is registered unless the gate passes; `expected` is the champion at the start."""
        data = place(ops.prepare_data(source=source, image_size=image_size))
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
                init_from=init_from,
                precision=precision,
                augment=augment,
                processes=processes,
                nodes=nodes,
                workers=workers,
            )
        )
        model = trained.outputs["model"]
        exported = place(ops.export_onnx(model=model))
        gate = place(
            ops.validate(
                dataset=data.outputs["dataset"],
                model=model,
                onnx=exported.outputs["onnx"],
                chance_factor=chance_factor,
                onnx_atol=onnx_atol,
            )
        )
        recorded = place(
            ops.record(
                kind="train",
                name=name,
                validation=gate.outputs["report"],
                export=exported.outputs["report"],
                work=trained.outputs["report"],
            )
        )
        with dsl.If(gate.outputs["Output"] == True, "gate-passed"):  # noqa: E712 (kfp's condition)
            fisher = place(ops.compute_fim(model=model)).after(recorded)
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
            place(ops.promote(name=name, version=registered.output, expected=expected))

    return train
