"""Train pipeline: from a data source to a champion that can forget."""

from typing import Any, Dict

from kfp import dsl
from kfp.dsl import PipelineConfig
from kfp.dsl.base_component import BaseComponent

from expunge import ops
from expunge.config import TRAIN_GATE, GateConfig, TrainConfig
from expunge.verdicts import PASSED
from expunge_pipelines.placement import Place

# What the form in Kubeflow's UI is filled with, for a person to change.
RECIPE = TrainConfig.list_defaults()
GATE = GateConfig().to_json(TRAIN_GATE)


def build_train(place: Place, config: PipelineConfig | None = None) -> BaseComponent:
    """Return the pipeline: `place` gives each task its resources, `config` is of the whole."""

    @dsl.pipeline(
        name="expunge-train",
        description="Train with mnemonic codes, validate, export, register and promote.",
        pipeline_config=config,
    )
    def train(
        name: str,
        source: str,
        recipe: Dict[str, Any] = RECIPE,
        image_size: int = 0,
        gate: Dict[str, Any] = GATE,
        expected: int = -1,
    ) -> None:
        """Train a new version of a model; nothing is registered unless the gate passes.

        `recipe` and `gate` are a `TrainConfig` and a `GateConfig`; what is left out of them has its
        default, and only `arch` has none. `expected` is the champion that the new version may
        replace, 0 for none. With -1 it is the one that serves when the run starts, and then classes
        that were erased are left out too.
        """
        plan = place(ops.plan_training(name=name, recipe=recipe, expected=expected))
        data = place(ops.prepare_data(source=source, image_size=image_size)).after(plan)
        code = data.outputs["code"]
        trained = place(
            ops.train(
                dataset=data.outputs["dataset"],
                name=name,
                recipe=plan.outputs["recipe"],
                code=code,
                data=f"{data.outputs['digest']} {plan.outputs['start']}",
            )
        )
        model, digest = trained.outputs["model"], trained.outputs["digest"]
        exported = place(ops.export_onnx(model=model, code=code, data=digest))
        checked = place(
            ops.validate(
                dataset=data.outputs["dataset"],
                model=model,
                onnx=exported.outputs["onnx"],
                gate=gate,
                code=code,
                data=f"{data.outputs['digest']} {digest} {exported.outputs['digest']}",
            )
        )
        recorded = place(
            ops.log_run(
                kind="train",
                name=name,
                validation=checked.outputs["report"],
                export=exported.outputs["report"],
                work=trained.outputs["report"],
            )
        )
        with dsl.If(checked.outputs["Output"] == PASSED, "gate-passed"):
            fisher = place(ops.compute_fim(model=model, code=code, data=digest)).after(recorded)
            registered = place(
                ops.register(
                    kind="train",
                    name=name,
                    model=model,
                    fisher=fisher.outputs["fisher"],
                    onnx=exported.outputs["onnx"],
                    validation=checked.outputs["report"],
                )
            )
            place(
                ops.promote(name=name, version=registered.output, expected=plan.outputs["expected"])
            )

    return train
