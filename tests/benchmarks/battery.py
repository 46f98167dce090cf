"""The whole battery on MNIST or CIFAR-10: controls, held-out oracles and the methods.

    python tests/benchmarks/battery.py mnist --work /tmp/mnist
    python tests/benchmarks/battery.py cifar10 --work /tmp/cifar10 --classes 0

For each class and each seed of the original: the original, both masks, an oracle that is held out,
the paper's rule with the paper's lambdas, and both rules calibrated. Each is judged against three
oracles, of which the held-out one is none. Four oracles a class are trained, and shared by the
seeds: what an original's seed was does not matter to a model that never saw it.

Every model is kept in the work folder as soon as it is trained, and every row in `battery.jsonl` as
soon as it is measured; a run that was stopped goes on where it was. `--train-only` ends there. Rows
belong to the code that made them: delete the file when the battery has changed. The margins of the
attacks (`core/attacks`) were set on these models, so their rates are those of the sample itself.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from forgetting import machine, parser, prepared_model

from expunge.config import ORACLE_CHECKS, GateConfig, PerturbConfig, TrainConfig
from expunge.core.attacks.case import Case, Seen
from expunge.core.attacks.membership import attack_model
from expunge.core.attacks.relearning import count_steps
from expunge.core.grading.grades import BODY
from expunge.core.grading.judge import Judgement, judge
from expunge.core.heads import mask_heads, with_head
from expunge.device import best_device
from expunge.formats.dataset import load_dataset_info
from expunge.formats.files import write_json
from expunge.formats.model import StoredModel, load_model
from expunge.steps.compute_fim import compute_fim
from expunge.steps.perturb import perturb
from expunge.steps.train import train
from expunge.validation.samples import SEED, Bench, open_bench

ORACLE_SEEDS = (1001, 1002, 1003, 1004)
CONTROLS = ("original", "mask", "soft-mask", "oracle")
METHODS = {
    "paper, its lambdas": {"rule": "paper", "lambdas": (1e-3, 10.0)},
    "paper": {"rule": "paper"},
    "natural": {"rule": "natural"},
}
RECIPES = {
    "mnist": TrainConfig(arch="mlp", epochs=20, schedule="none", t_mix=0.1),
    "cifar10": TrainConfig(arch="resnet20", epochs=5, learning_rate=0.05, t_mix=0.3),
}
SEEDS = {"mnist": 3, "cifar10": 1}
PAPER_LAMBDAS = {"mnist": (1e-3, 10.0), "cifar10": (1e-5, 1e4)}
METRICS = ORACLE_CHECKS


def main() -> None:
    """Train what is not there yet, judge, and print the tables."""
    given = _options()
    config = replace(RECIPES[given.data_set], epochs=given.epochs)
    source = "mnist" if given.data_set == "mnist" else f"folder:{given.data / 'cifar10-jpeg.tar'}"
    originals = [
        prepared_model(given.work, source, given.data, replace(config, seed=seed))
        for seed in range(given.seeds)
    ]
    print(f"{given.data_set}, {config.arch}, {config.epochs} epochs; {machine()}", flush=True)
    rows = []
    for index in given.classes:
        oracles = [_oracle(given.work, config, index, seed) for seed in ORACLE_SEEDS]
        if not given.train_only:
            rows += _judged_class(given, originals, oracles, index)
    if rows:
        _print_tables(rows)


def _options() -> argparse.Namespace:
    made = parser(__doc__ or "", epochs=0)
    made.add_argument("data_set", choices=RECIPES)
    made.add_argument("--classes", type=int, nargs="*", default=list(range(10)))
    made.add_argument("--seeds", type=int, help="of the original; 3 for mnist, 1 for cifar10")
    made.add_argument("--train-only", action="store_true")
    given = made.parse_args()
    given.epochs = given.epochs or RECIPES[given.data_set].epochs
    given.seeds = given.seeds or SEEDS[given.data_set]
    return given


def _oracle(work: Path, config: TrainConfig, index: int, seed: int) -> Path:
    """Retrain a model without the class, unless it is there."""
    model = work / f"oracle-{index}-{seed}-{config.epochs}"
    if not (model / "report.json").exists():
        own = replace(config, seed=seed, without=(index,))
        report = train(own, work / "dataset", model, checkpoints=work / "checkpoints")
        write_json(model / "report.json", report)
        print(f"{model.name}: test accuracy {report['test_accuracy']:.3f}", flush=True)
    return model


def _judged_class(
    given: argparse.Namespace, originals: Sequence[Path], oracles: Sequence[Path], index: int
) -> list[dict[str, Any]]:
    """Return the rows of one class, all seeds, measured now or read from an earlier run."""
    path = given.work / "battery.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    known = {row["key"]: row for row in map(json.loads, lines)}
    names = [*CONTROLS, *METHODS]
    wanted = {
        (seed, name): f"{index} {model.name} {name}"
        for seed, model in enumerate(originals)
        for name in names
    }
    if not set(wanted.values()) <= set(known):
        bench = _bench(given.work, load_model(originals[0]), index)
        seen = [bench.see(_module(path)) for path in oracles]
        for seed, model in enumerate(originals):
            if all(wanted[seed, name] in known for name in names):
                continue
            found = _judge(given, bench, model, seen, index, seed)
            with path.open("a") as file:
                for name, row in found.items():
                    key = wanted[seed, name]
                    known[key] = {"key": key, "class": index, "seed": seed, "model": name, **row}
                    file.write(json.dumps(known[key]) + "\n")
            print(f"class {index}, seed {seed}: {_verdicts(found)}", flush=True)
    return [known[key] for key in wanted.values()]


def _bench(work: Path, original: StoredModel, index: int) -> Bench:
    dataset = work / "dataset"
    info = load_dataset_info(dataset)
    retain = [i for i in range(len(info.class_names)) if i != index]
    scale = original.info.mean, original.info.std
    return open_bench(dataset, info, scale, forget=[index], retain=retain)


def _module(path: Path) -> Any:
    return load_model(path).module.to(best_device())


def _judge(
    given: argparse.Namespace,
    bench: Bench,
    model: Path,
    oracles: Sequence[Seen],
    index: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """One original and what was made of it, against all oracles but one, which is judged too."""
    since = time.perf_counter()
    stored = load_model(model)
    module = stored.module.to(best_device())
    original = bench.see(module)
    models = {"original": original}
    codes_KCHW = stored.codes.images_KCHW[stored.codes.classes_K != index].to(best_device())
    for name, mask in mask_heads(module, codes_KCHW, [index], bench.num_classes).items():
        models[name] = original.swap_head(mask, bench.relearn(with_head(module, mask)))
    held_out = seed % len(oracles)
    models["oracle"] = oracles[held_out]
    for name, settings in METHODS.items():
        own = dict(settings)
        if "lambdas" in own:
            own["lambdas"] = PAPER_LAMBDAS[given.data_set]
        models[name] = bench.see(_unlearned(given.work, model, index, own))
    compared = [oracle for i, oracle in enumerate(oracles) if i != held_out]
    retain = tuple(i for i in range(bench.num_classes) if i != index)
    case = Case((index,), retain, original, SEED)
    least = GateConfig().forget_error
    found = judge(case, models, compared, ("original", "mask"), forget_error=least)
    print(f"  {time.perf_counter() - since:.0f} s", flush=True)
    return {name: _row(name, case, models[name], found) for name in models}


def _unlearned(work: Path, model: Path, index: int, settings: Mapping[str, Any]) -> Any:
    terms, unlearned = work / "terms", work / "unlearned"
    compute_fim(model, terms, classes=[index])
    perturb(PerturbConfig((index,), **settings), model, terms, unlearned, parent="benchmark/1")
    return _module(unlearned)


def _row(name: str, case: Case, seen: Seen, found: Judgement) -> dict[str, Any]:
    values = {metric: found.values[name][metric][0] for metric in METRICS}
    oracles = {
        metric: [own[metric][0] for own in found.oracles if own[metric][0] is not None]
        for metric in METRICS
    }
    return {
        "grade": found.grades[name],
        "forget_error": 1 - seen.forget_test.right,
        "retain_accuracy": seen.retain_test.right,
        "values": values,
        "oracles": {metric: mean(own) if own else None for metric, own in oracles.items()},
        "thresholds": {metric: check.threshold for metric, check in found.checks[name].items()},
        "passed": {metric: check.passed for metric, check in found.checks[name].items()},
        "counting": sorted(name for name, row in found.counting.items() if any(row)),
        "steps_to_relearn": count_steps(case, seen),
        "auc": attack_model(seen, case.forget).auc,
    }


def _verdicts(rows: Mapping[str, dict[str, Any]]) -> str:
    return ", ".join(f"{name} {row['grade']}" for name, row in rows.items())


def _print_tables(rows: Sequence[dict[str, Any]]) -> None:
    names = [*CONTROLS, *METHODS]
    print("\n| model | cases | failed | suppressed | forgotten | E_F | A_R |", end="")
    print("".join(f" {metric} |" for metric in METRICS))
    print("| --- " * (7 + len(METRICS)) + "|")
    for name in names:
        own = [row for row in rows if row["model"] == name]
        count = Counter(row["grade"] for row in own)
        graded = [str(count[grade]) for grade in ("failed", "suppressed", "forgotten")]
        plain = [_percent([row[key] for row in own]) for key in ("forget_error", "retain_accuracy")]
        means = [_percent([row["values"][metric] for row in own]) for metric in METRICS]
        print(f"| {name} | {len(own)} | {' | '.join([*graded, *plain, *means])} |")
    originals = [row for row in rows if row["model"] == "original"]
    compared = [_percent([row["oracles"][metric] for row in originals]) for metric in METRICS]
    allowed = [_percent([row["thresholds"].get(metric) for row in originals]) for metric in METRICS]
    counting = [
        # the head swap is evidence where the class comes back, and no comparison
        "-"
        if metric == "head_swap"
        else f"{sum(metric in row['counting'] for row in originals)}/{len(originals)}"
        for metric in METRICS
    ]
    for label, cells in (
        ("oracles compared with", compared),
        ("largest gap that passes", allowed),
        ("can tell", counting),
    ):
        print(f"| {label} |  |  |  |  |  |  | {' | '.join(cells)} |")
    wrong = [r for r in rows if r["model"] == "oracle" and r["grade"] != "forgotten"]
    for row in wrong:
        failed = [metric for metric in row["counting"] if not row["passed"].get(metric)]
        print(f"\nheld out, class {row['class']}, seed {row['seed']}: fails {', '.join(failed)}")
    masks = [r for r in rows if r["model"] in ("mask", "soft-mask") and r["grade"] == "forgotten"]
    unseen = [r for r in originals if not set(r["counting"]) & set(BODY)]
    held_out = [r for r in rows if r["model"] == "oracle"]
    print(
        f"\n{len(masks)} masks graded forgotten; {len(held_out) - len(wrong)} of {len(held_out)} "
        f"held-out oracles graded forgotten; in {len(unseen)} of {len(originals)} cases no check "
        "of the body could tell."
    )


def _percent(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * mean(known):.1f}" if known else "-"


if __name__ == "__main__":
    main()
