"""Forget pipeline: from requests in the queue to a champion that has forgotten."""

from dataclasses import dataclass
from typing import Any, Dict, List

from kfp import dsl
from kfp.dsl import PipelineConfig, PipelineTask
from kfp.dsl.base_component import BaseComponent

from expunge import ops
from expunge.config import FORGET_GATE, GateConfig
from expunge.core.rules import LADDER
from expunge.validation_report import CLIMB
from expunge_pipelines.placement import Place

# What the form in Kubeflow's UI is filled with, for a person to change.
GATE = GateConfig().to_json(FORGET_GATE)


def build_forget(place: Place, config: PipelineConfig | None = None) -> BaseComponent:
    """Return the pipeline: `place` gives each task its resources, `config` is of the whole."""

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
        ladder: bool = False,
        lambdas: List[float] = [],
        forget_data: str = "",
        gate: Dict[str, Any] = GATE,
        dry_run: bool = False,
    ) -> None:
        """Forget what is pending of a model, or `requests`; an empty queue ends it at once.

        Nothing is registered unless the gate passes. With `ladder`, several rules are tried in the
        order of their cost, until one passes. Images of the classes in source `forget_data` choose
        how deep replay goes, where none was kept at training. `gate` is a `GateConfig`; what is
        left out of it has its default. A dry run takes `classes` of `version`, no request, and ends
        there.
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
                settings = ForgetSettings(rule, ladder, lambdas, forget_data, gate, dry_run)
                _forget_claimed(place, base, name, settings)

    return forget


@dataclass(frozen=True)
class ForgetSettings:
    """How to forget what was claimed: channels of kfp, which stand for the values of a run."""

    rule: str
    ladder: bool
    lambdas: List[float]
    forget_data: str
    gate: Dict[str, Any]
    dry_run: bool


@dataclass(frozen=True)
class Prepared:
    """What every rung begins with: the task that claimed, and those that got what it needs."""

    place: Place
    name: str
    settings: ForgetSettings
    base: PipelineTask
    oracles: PipelineTask
    data: PipelineTask
    terms: PipelineTask


def _forget_claimed(place: Place, base: PipelineTask, name: str, settings: ForgetSettings) -> None:
    """Add the tasks from the version that `base` fetched to a new champion."""
    classes, code, digest = (base.outputs[key] for key in ("classes", "code", "digest"))
    retrained = place(
        ops.load_oracles(
            base=base.outputs["model"],
            name=name,
            classes=classes,
            gate=settings.gate,
            version=base.outputs["version"],
        )
    )
    data = place(
        ops.prepare_data(
            source=base.outputs["source"],
            image_size=base.outputs["image_size"],
            splits=retrained.outputs["splits"],
            optional_splits=retrained.outputs["optional_splits"],
        )
    )
    terms = place(
        ops.compute_fim(model=base.outputs["model"], classes=classes, code=code, data=digest)
    )
    _add_rung(Prepared(place, name, settings, base, retrained, data, terms))


def _add_rung(given: Prepared, rung: int = 1, before: PipelineTask | None = None) -> None:
    """Add the tasks of a rung and, inside of a condition, those of the rungs above it.

    Without a ladder the first is all there is. `before` is the validation of the rung below.
    """
    place, settings, base = given.place, given.settings, given.base
    classes, code, digest = (base.outputs[key] for key in ("classes", "code", "digest"))
    images = given.data.outputs["digest"]
    changed = place(
        ops.perturb(
            model=base.outputs["model"],
            fisher=given.terms.outputs["fisher"],
            classes=classes,
            parent=base.outputs["reference"],
            dataset=given.data.outputs["dataset"],
            rule=settings.rule,
            lambdas=settings.lambdas,
            forget_data=settings.forget_data,
            gate=settings.gate,
            ladder=settings.ladder,
            rung=rung,
            code=code,
            data=f"{digest} {given.terms.outputs['digest']} {images}",
        )
    )
    model, unlearned = changed.outputs["unlearned"], changed.outputs["digest"]
    exported = place(ops.export_onnx(model=model, code=code, data=unlearned))
    earlier = {"before": before.outputs["report"]} if before else {}
    below = f" {before.outputs['digest']}" if before else ""
    checked = place(
        ops.validate(
            dataset=given.data.outputs["dataset"],
            model=model,
            onnx=exported.outputs["onnx"],
            base=base.outputs["model"],
            oracles=given.oracles.outputs["oracles"],
            work=changed.outputs["report"],
            classes=classes,
            gate=settings.gate,
            ladder=settings.ladder,
            rung=rung,
            code=code,
            data=f"{images} {unlearned} {exported.outputs['digest']} {digest} "
            f"{given.oracles.outputs['digest']}{below}",
            **earlier,
        )
    )
    # First, so that the tasks of a run without a ladder have the lower numbers in their names. The
    # highest rung has the condition as well, for what is said in `_settle`.
    with dsl.If(checked.outputs["Output"] != CLIMB, f"rung-{rung}-is-the-last"):
        _settle(given, changed, exported, checked)
    if rung < len(LADDER):
        with dsl.Else(f"rung-{rung + 1}"):
            _add_rung(given, rung + 1, checked)


def _settle(
    given: Prepared, changed: PipelineTask, exported: PipelineTask, checked: PipelineTask
) -> None:
    """Add the tasks that report on the last rung, and promote it if it passed."""
    place, base, model = given.place, given.base, changed.outputs["unlearned"]
    shown = place(
        ops.render_report(validation=checked.outputs["report"], work=changed.outputs["report"])
    )
    recorded = place(
        ops.log_run(
            kind="forget",
            name=given.name,
            validation=checked.outputs["report"],
            export=exported.outputs["report"],
            work=changed.outputs["report"],
            page=shown.outputs["page"],
        )
    )
    dry_run = given.settings.dry_run
    # Not by "Output": kfp's local runner finds the value of a task beside a condition by that name
    # alone, and that of a task outside of an outer condition by any other.
    passed = checked.outputs["passed"] == True  # noqa: E712 (kfp's condition)
    with dsl.If(passed, "gate-passed"), dsl.If(dry_run == False, "not-a-dry-run"):  # noqa: E712
        total = place(
            ops.compute_fim(model=model, code=base.outputs["code"], data=changed.outputs["digest"])
        ).after(recorded)
        registered = place(
            ops.register(
                kind="forget",
                name=given.name,
                model=model,
                fisher=total.outputs["fisher"],
                onnx=exported.outputs["onnx"],
                validation=checked.outputs["report"],
                requests=base.outputs["requests"],
            )
        )
        place(
            ops.promote(
                name=given.name,
                version=registered.output,
                expected=base.outputs["version"],
                token=base.outputs["token"],
            )
        )
