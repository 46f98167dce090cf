"""The forget pipeline: from requests in the queue to a champion that has forgotten."""

from typing import List

from kfp import dsl
from kfp.dsl import PipelineConfig, PipelineTask
from kfp.dsl.base_component import BaseComponent

from expunge import ops
from expunge_pipelines.placement import Place


def build_forget(place: Place, config: PipelineConfig | None = None) -> BaseComponent:
    """The pipeline, with `place` giving each task its resources, and `config` the whole of it."""

    @dsl.pipeline(
        name="expunge-forget",
        description="Take requests, forget in one shot, validate, report, register and promote.",
        pipeline_config=config,
    )
    def forget(
        name: str,
        requests: List[str] = [],
        approval: bool = False,
        attempts: int = 5,
        lease_seconds: float = 86400.0,
        classes: List[int] = [],
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
        """Every pending request of a model, or `requests`; with an empty queue it is over at once.

        Nothing is registered unless the gate passes. A dry run takes `classes` of `version`, no
        request, and ends there.
        """
        settled = place(ops.close_requests(name=name, attempts=attempts))
        with dsl.ExitHandler(settled, "requests-are-settled"):
            base = place(
                ops.claim_requests(
                    name=name,
                    requests=requests,
                    approval=approval,
                    lease_seconds=lease_seconds,
                    dry_run=dry_run,
                    classes=classes,
                    version=version,
                )
            )
            with dsl.If(base.outputs["Output"] == True, "something-to-forget"):  # noqa: E712
                _forget_claimed(place, base, name, rule, lambdas, budget, forget_error,
                                worst_drop, onnx_atol, grade, block, dry_run)  # fmt: skip

    return forget


def _forget_claimed(
    place: Place,
    base: PipelineTask,
    name: str,
    rule: str,
    lambdas: List[float],
    budget: float,
    forget_error: float,
    worst_drop: float,
    onnx_atol: float,
    grade: str,
    block: List[str],
    dry_run: bool,
) -> None:
    """The tasks from the version that `base` fetched to a new champion."""
    classes, code, digest = (base.outputs[key] for key in ("classes", "code", "digest"))
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
    terms = place(
        ops.compute_fim(model=base.outputs["model"], classes=classes, code=code, data=digest)
    )
    changed = place(
        ops.perturb(
            model=base.outputs["model"],
            fisher=terms.outputs["fisher"],
            classes=classes,
            parent=base.outputs["reference"],
            rule=rule,
            lambdas=lambdas,
            budget=budget,
            code=code,
            data=f"{digest} {terms.outputs['digest']}",
        )
    )
    model, unlearned = changed.outputs["unlearned"], changed.outputs["digest"]
    exported = place(ops.export_onnx(model=model, code=code, data=unlearned))
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
            code=code,
            data=f"{data.outputs['digest']} {unlearned} {exported.outputs['digest']} {digest} "
            f"{retrained.outputs['digest']}",
        )
    )
    shown = place(
        ops.render_report(validation=gate.outputs["report"], work=changed.outputs["report"])
    )
    recorded = place(
        ops.log_run(
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
        total = place(ops.compute_fim(model=model, code=code, data=unlearned)).after(recorded)
        registered = place(
            ops.register(
                kind="forget",
                name=name,
                model=model,
                fisher=total.outputs["fisher"],
                onnx=exported.outputs["onnx"],
                validation=gate.outputs["report"],
                requests=base.outputs["requests"],
            )
        )
        place(
            ops.promote(
                name=name,
                version=registered.output,
                expected=base.outputs["version"],
                token=base.outputs["token"],
            )
        )
