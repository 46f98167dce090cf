"""Train once, then forget classes one request at a time, and print what each cost.

The steps are those of the pipelines, called in this process: what `expunge forget --dry-run` does,
without a process for each step and without a registry. Every row is kept in `rows.jsonl` of the
work folder as soon as it is measured, and a run that was stopped goes on where it was.
"""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from expunge.config import GateConfig, PerturbConfig, PrepareDataConfig, TrainConfig
from expunge.formats.dataset import DATASET
from expunge.formats.files import write_json
from expunge.formats.fisher import FISHER
from expunge.steps.compute_fim import compute_fim
from expunge.steps.export_onnx import export_onnx
from expunge.steps.perturb import perturb
from expunge.steps.prepare_data import prepare_data
from expunge.steps.train import train
from expunge.steps.validate import validate

ROOT = Path(__file__).resolve().parents[2]
Requests = Sequence[tuple[int, ...]]


def parser(description: str, epochs: int) -> argparse.ArgumentParser:
    """Build a parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    made.add_argument("--work", type=Path, required=True, help="kept between runs")
    made.add_argument("--epochs", type=int, default=epochs)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--rule", choices=("auto", "paper", "natural"), default="auto")
    made.add_argument("--lambdas", type=float, nargs=2, default=[], help="with --rule paper")
    return made


def prepared_model(work: Path, source: str, data_root: Path, config: TrainConfig) -> Path:
    """Return the folder of a trained model, made unless it is there, beside its data set."""
    dataset, model = work / "dataset", work / f"model-{config.seed}-{config.epochs}"
    if not (dataset / DATASET).exists():
        prepare_data(PrepareDataConfig(source, data_root), dataset)
    if not (model / FISHER).exists():
        report = train(config, dataset, model, checkpoints=work / "checkpoints", on_epoch=_say)
        compute_fim(model, model)
        write_json(model / "report.json", report)
    return model


def forget_each(
    work: Path, model: Path, requests: Requests, rule: str, lambdas: Sequence[float]
) -> list[dict[str, Any]]:
    """One row for each request, measured now or read from an earlier run."""
    path = work / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {row["key"]: row for row in rows}
    found = []
    for classes in requests:
        key = json.dumps([model.name, classes, rule, list(lambdas)])
        if key not in known:
            known[key] = {"key": key, **_forget(work, model, classes, rule, tuple(lambdas))}
            with path.open("a") as file:
                file.write(json.dumps(known[key]) + "\n")
        print(_line(known[key]), flush=True)
        found.append(known[key])
    return found


def _forget(
    work: Path, model: Path, classes: tuple[int, ...], rule: str, lambdas: tuple[float, ...]
) -> dict[str, Any]:
    terms, unlearned, onnx = work / "terms", work / "unlearned", work / "model.onnx"
    since = time.perf_counter()
    compute_fim(model, terms, classes=classes)
    fisher = time.perf_counter() - since
    config = PerturbConfig(classes, rule, lambdas)
    work_report = perturb(config, model, terms, unlearned, parent="benchmark/1")
    export_onnx(unlearned, onnx)
    found = validate(GateConfig(), work / "dataset", unlearned, onnx, base=model, classes=classes)
    report = found.to_json()
    before, after = report["before"], report["after"]
    kept = [i for i in range(len(before["per_class"])) if i not in classes]
    drops = {i: before["per_class"][i] - after["per_class"][i] for i in kept}
    worst = max(drops, key=lambda i: drops[i])
    return {
        "classes": list(classes),
        **{name: work_report[name] for name in ("rule", "sign", "strength", "lambdas")},
        "forget_error": after["forget_error"],
        "retain_before": before["retain_accuracy"],
        "retain_after": after["retain_accuracy"],
        "worst_class": worst,
        "worst_drop": drops[worst],
        "forget_loss": work_report["forget_loss"],
        "damage": work_report["damage"],
        "passed": report["passed"],
        "failed": [check["name"] for check in report["checks"] if not check["passed"]],
        "fisher_seconds": fisher,
        "calibration_seconds": work_report["calibration_seconds"],
    }


def header() -> str:
    """Return the head of the table, in Markdown."""
    return (
        "| forget | rule | E_F | A_R before | A_R after | change | worst class | gate |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |"
    )


def _line(row: dict[str, Any]) -> str:
    sign = "+" if row["sign"] > 0 else "-"
    rule = f"{row['rule']} {sign} {row['strength']:.3g}"
    if row["lambdas"]:
        rule += f", {row['lambdas'][1]:g}"
    change = row["retain_after"] - row["retain_before"]
    verdict = "passed" if row["passed"] else ", ".join(row["failed"])
    return (
        f"| {', '.join(map(str, row['classes']))} | {rule} | {_percent(row['forget_error'])} | "
        f"{_percent(row['retain_before'])} | {_percent(row['retain_after'])} | "
        f"{100 * change:+.2f} | {row['worst_class']}: {-100 * row['worst_drop']:+.1f} | {verdict} |"
    )


def summary(rows: Sequence[dict[str, Any]], least_error: float, most_drop: float) -> str:
    """How many requests reached the goal, and the extremes."""
    drops = [row["retain_before"] - row["retain_after"] for row in rows]
    good = sum(
        row["forget_error"] >= least_error and drop <= most_drop
        for row, drop in zip(rows, drops, strict=True)
    )
    return (
        f"\n{good} of {len(rows)} requests with E_F >= {_percent(least_error)} and A_R at most "
        f"{100 * most_drop:g} points below before. E_F: lowest "
        f"{_percent(min(row['forget_error'] for row in rows))}, mean "
        f"{_percent(mean(row['forget_error'] for row in rows))}. A_R: at worst "
        f"{-100 * max(drops):+.2f} points, mean {-100 * mean(drops):+.2f}. Worst retained class: "
        f"{-100 * max(row['worst_drop'] for row in rows):+.1f} points. Gate at its defaults: "
        f"{sum(row['passed'] for row in rows)} passed."
    )


def machine() -> str:
    """Describe what the figures were measured on."""
    import os

    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores, {device}, torch {torch.__version__}, {platform.machine()}"


def _say(epoch: int, metrics: dict[str, float]) -> None:
    print(f"epoch {epoch}: test accuracy {_percent(metrics['test_accuracy'])}", flush=True)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
