"""The forget pipeline: from a registered version to one that has forgotten classes."""

from typing import List

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from expunge import ops
from expunge_pipelines.resources import Place


def build_forget(place: Place) -> BaseComponent:
    """The pipeline, with `place` giving each task its resources."""

    @dsl.pipeline(
        name="expunge-forget",
        description="Forget classes in one shot, export, validate, report, register and promote.",
    )
    def forget(
        name: str,
        classes: List[int],
        version: int = 0,
        rule: str = "auto",
        lambdas: List[float] = [],
        budget: float = 0.015,
        forget_error: float = 0.95,
        worst_drop: float = 0.06,
        onnx_atol: float = 1e-5,
        grade: str = "suppressed",
        block: List[str] = [],
        dry_run: bool = False,
    ) -> None:
        """Nothing is registered unless the gate passes; a dry run ends there."""
        base = place(ops.load_version(name=name, version=version, classes=classes))
        retrained = place(
            ops.load_oracles(
                base=base.outputs["model"],
                name=name,
                classes=classes,
                grade=grade,
                version=base.outputs["version"],
            )
        )
        data = place(
            ops.prepare_data(
                source=base.outputs["source"],
                image_size=base.outputs["image_size"],
                splits=retrained.outputs["splits"],
            )
        )
        terms = place(ops.compute_fim(model=base.outputs["model"], classes=classes))
        changed = place(
            ops.perturb(
                model=base.outputs["model"],
                fisher=terms.outputs["fisher"],
                classes=classes,
                parent=base.outputs["reference"],
                rule=rule,
                lambdas=lambdas,
                budget=budget,
            )
        )
        model = changed.outputs["unlearned"]
        exported = place(ops.export_onnx(model=model))
        gate = place(
            ops.validate(
                dataset=data.outputs["dataset"],
                model=model,
                onnx=exported.outputs["onnx"],
                base=base.outputs["model"],
                oracles=retrained.outputs["oracles"],
                classes=classes,
                forget_error=forget_error,
                budget=budget,
                worst_drop=worst_drop,
                onnx_atol=onnx_atol,
                grade=grade,
                block=block,
            )
        )
        shown = place(ops.report(validation=gate.outputs["report"], work=changed.outputs["report"]))
        recorded = place(
            ops.record(
                kind="forget",
                name=name,
                validation=gate.outputs["report"],
                export=exported.outputs["report"],
                work=changed.outputs["report"],
                page=shown.outputs["page"],
            )
        )
        passed = gate.outputs["Output"] == True  # noqa: E712 (kfp's condition)
        with dsl.If(passed, "gate-passed"), dsl.If(dry_run == False, "not-a-dry-run"):  # noqa: E712
            total = place(ops.compute_fim(model=model)).after(recorded)
            registered = place(
                ops.register(
                    kind="forget",
                    name=name,
                    model=model,
                    fisher=total.outputs["fisher"],
                    onnx=exported.outputs["onnx"],
                    validation=gate.outputs["report"],
                )
            )
            place(
                ops.promote(name=name, version=registered.output, expected=base.outputs["version"])
            )

    return forget
