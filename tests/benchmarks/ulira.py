"""U-LiRA on the embedded digits: can an attacker with shadow models tell unlearned from retrained?

    python tests/benchmarks/ulira.py --work /tmp/ulira

A *sample* is a training image of the forgotten class. The attacker gets a target model and asks of
each sample whether it is a *member*: positive is a target that was trained with it and then
unlearned the class, negative one that was retrained from scratch without the class. Data, recipe
and method are known; there are shadow models of both kinds, which differ from targets by their
seed alone (initial weights, order of the images, codes). All learn from the same images: what
is asked is whether the whole class took part. The scores are `lira`'s.

Two statistics, since the first alone deceives about a mask:

- *true class*: the scaled confidence in the sample's own class, that of Hayes et al. A mask makes
  it -1e4 or so: whatever the model remembers, that constant alone gives the mask away, and an
  attack that clamps probabilities would see a perfect unlearning in it. An AUC of 1 for a mask says
  nothing here.
- *retained classes*: the forgotten logits are taken out, and the scaled confidence in each other
  class, among those that are left, is a statistic of its own; their log likelihood ratios are
  added. A change of the forgotten logits alone cannot move it, so a mask has what its original has,
  and is judged by what the rest of the model remembers. The full softmax would not do: its
  forgotten entry is 0 for every mask, the same constant again.

Both are per sample. Adding the scores of all samples would tell far more about a whole class.

The last row is the attack on nothing: retrained models stand in for the unlearned ones, as shadows
and as targets. "Chance" is how far from 0.5 the AUC may be if there is nothing to find (95 %, by
relabelling whole targets): with few targets that is much, as the samples of one model go together.

Each model's logits on the samples are kept in the work folder, so a run that was stopped goes on;
they belong to the code that made them, so delete the folder when the method has changed.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from forgetting import machine
from lira import chance_band, likelihood_ratios, scaled_confidence, separation
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.config import PerturbConfig, PrepareDataConfig, TrainConfig
from expunge.core.epoch import normalise
from expunge.core.heads import Observed, mask_heads, observe
from expunge.formats.dataset import DATASET, load_arrays
from expunge.formats.model import StoredModel, load_model
from expunge.steps.compute_fim import compute_fim
from expunge.steps.perturb import perturb
from expunge.steps.prepare_data import prepare_data
from expunge.steps.train import train

# Trained with all classes; retrained without the forgotten ones; and as many of those once more, to
# stand in for unlearned models. No two have a seed in common, whatever the numbers of models.
WITH, WITHOUT, AGAIN = "with", "without", "again"
KINDS = (WITH, WITHOUT, AGAIN)
RULES = ("auto", "natural")
RETRAINED = "retrained"
ROWS = ("original", "mask", "soft-mask", *RULES, RETRAINED)
# Half the demo's epochs at twice its rate: the same accuracy and codes in half the time.
EPOCHS, RATE = 30, 0.1
FPR = 0.01
ACCURACIES = ("test_accuracy", "code_accuracy")


def main() -> None:
    """Make the models that are missing, then print the table."""
    options = _options()
    torch.set_num_threads(1)  # so small a network gains nothing from a second one
    since = time.perf_counter()
    dataset = options.work / "dataset"
    if not (dataset / DATASET).exists():
        prepare_data(PrepareDataConfig("digits", options.work), dataset)
    names = "-".join(map(str, options.classes))
    folder = options.work / f"class-{names}-epochs-{options.epochs}"
    count = options.shadows + options.targets
    made = 0
    for index in range(count):
        for kind in KINDS:
            made += _make(folder, dataset, kind, index, options.classes, options.epochs)
        if made and (index + 1) % 8 == 0:
            print(f"{index + 1} of {count} models of each kind", file=sys.stderr, flush=True)
    labels_N = _samples(dataset, options.classes)[1]
    print(
        f"Digits, MLP, {options.epochs} epochs, forgotten {names}; {options.shadows} shadow and "
        f"{options.targets} target models of each kind, {len(labels_N)} samples; {machine()}, "
        "one thread\n"
    )
    print(_table(folder, count, options.targets, options.classes, labels_N))
    print(f"\n{_trained(folder, count)}")
    print(f"{made} models made; {time.perf_counter() - since:.0f} s")


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    made.add_argument("--work", type=Path, required=True, help="kept between runs")
    made.add_argument("--shadows", type=int, default=32, help="of each kind, 2 at least")
    made.add_argument("--targets", type=int, default=24, help="of each kind")
    made.add_argument("--classes", default="3", help="to forget, such as 3 or 3,5")
    made.add_argument("--epochs", type=int, default=EPOCHS)
    options = made.parse_args()
    options.classes = tuple(sorted(int(part) for part in options.classes.split(",")))
    if options.shadows < 2 or options.targets < 1:
        made.error("expected 2 shadow models and 1 target model at least")
    return options


def _samples(dataset: Path, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Images_NHWC and labels_N of the training images of the classes."""
    images_NHWC, labels_N = map(torch.from_numpy, load_arrays(dataset, "train"))
    own_N = torch.isin(labels_N, torch.tensor(classes))
    return images_NHWC[own_N], labels_N[own_N]


def _path(folder: Path, kind: str, index: int) -> Path:
    return folder / f"{kind}-{index:03}.safetensors"


def _make(
    folder: Path, dataset: Path, kind: str, index: int, classes: tuple[int, ...], epochs: int
) -> bool:
    """Train a model, unlearn where it saw the classes, and keep its logits on the samples.

    False where they are there already. The file holds logits_NC by row of the table; its metadata
    the accuracies of the training, and the rule that `auto` took.
    """
    path = _path(folder, kind, index)
    if path.exists():
        return False
    scratch = folder / "scratch"
    model, terms, unlearned = scratch / "model", scratch / "terms", scratch / "unlearned"
    config = TrainConfig(
        arch="mlp",
        epochs=epochs,
        batch_size=32,
        learning_rate=RATE,
        seed=len(KINDS) * index + KINDS.index(kind),
        without=() if kind == WITH else classes,
    )
    report = train(config, dataset, model, checkpoints=folder / "checkpoints")
    info = {key: str(report[key]) for key in ACCURACIES}
    samples = _samples(dataset, classes)
    if kind == WITH:
        logits = _controls(model, samples, classes)
        compute_fim(model, terms, classes=classes)
        for rule in RULES:
            work = perturb(PerturbConfig(classes, rule), model, terms, unlearned, parent="ulira/1")
            logits[rule] = _observe(load_model(unlearned), samples).logits_NC
            info[rule] = work["rule"]
    else:
        logits = {RETRAINED: _observe(load_model(model), samples).logits_NC}
    partial = path.with_suffix(".partial")
    save_file({row: logits_NC.contiguous() for row, logits_NC in logits.items()}, partial, info)
    partial.replace(path)
    shutil.rmtree(scratch)
    return True


def _observe(stored: StoredModel, samples: tuple[Tensor, Tensor]) -> Observed:
    images_NHWC, labels_N = samples
    mean_C, std_C = torch.tensor(stored.info.mean), torch.tensor(stored.info.std)
    batch = normalise(images_NHWC, mean_C, std_C), labels_N
    return observe(stored.module, [batch], len(stored.info.class_names))


def _controls(
    model: Path, samples: tuple[Tensor, Tensor], classes: Sequence[int]
) -> dict[str, Tensor]:
    """Return the logits of a model that forgot nothing, and of both masks on it."""
    stored = load_model(model)
    observed = _observe(stored, samples)
    num_classes = len(stored.info.class_names)
    kept_K = ~torch.isin(stored.codes.classes_K, torch.tensor(classes))
    codes_KCHW = stored.codes.images_KCHW[kept_K]
    heads = mask_heads(stored.module, codes_KCHW, classes, num_classes)
    hidden = {name: observed.under(head).logits_NC for name, head in heads.items()}
    return {"original": observed.logits_NC, **hidden}


def _statistics(
    logits_TNC: Tensor, labels_N: Tensor, classes: Sequence[int]
) -> dict[str, list[Tensor]]:
    """Return the statistics T x N by name (see the module); retained classes have one each."""
    retained = [i for i in range(logits_TNC.shape[2]) if i not in classes]
    kept_TNR = logits_TNC[:, :, retained]

    def confidence(logits: Tensor, classes_N: Tensor) -> Tensor:
        return torch.stack([scaled_confidence(logits_NC, classes_N) for logits_NC in logits])

    others = [torch.full_like(labels_N, position) for position in range(len(retained))]
    return {
        "true class": [confidence(logits_TNC, labels_N)],
        "retained classes": [confidence(kept_TNR, classes_N) for classes_N in others],
    }


def _table(folder: Path, count: int, targets: int, classes: Sequence[int], labels_N: Tensor) -> str:
    """Lay out a row for each of `ROWS`, with the first `targets` models as targets, not shadows."""
    lines = [
        "| targets | error on samples | true class: AUC | chance | TPR at 1 % FPR "
        "| retained classes: AUC | chance | TPR at 1 % FPR |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    paths = {kind: [_path(folder, kind, index) for index in range(count)] for kind in KINDS}
    negatives = _statistics(_logits(paths[WITHOUT], RETRAINED), labels_N, classes)
    for row in ROWS:
        logits_TNC = _logits(paths[AGAIN if row == RETRAINED else WITH], row)
        positives = _statistics(logits_TNC, labels_N, classes)
        error = (logits_TNC[:targets].argmax(dim=2) != labels_N).double().mean()
        cells = [row, f"{100 * float(error):.1f} %"]
        for name, positive in positives.items():
            negative = negatives[name]
            unlearned_TN = _scores(positive, positive, negative, targets)
            retrained_TN = _scores(negative, positive, negative, targets)
            found = separation(unlearned_TN, retrained_TN, FPR)
            band = chance_band(unlearned_TN, retrained_TN, torch.Generator().manual_seed(0))
            cells += [f"{found.auc:.3f}", f"0.5 ± {band:.2f}", f"{100 * found.tpr:.1f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _scores(
    judged: Sequence[Tensor], positive: Sequence[Tensor], negative: Sequence[Tensor], targets: int
) -> Tensor:
    """Return the scores T x N of the targets among the judged, over all statistics together."""
    ratios = [
        likelihood_ratios(one[:targets], unlearned[targets:], retrained[targets:])
        for one, unlearned, retrained in zip(judged, positive, negative, strict=True)
    ]
    return torch.stack(ratios).sum(dim=0)


def _logits(paths: Sequence[Path], row: str) -> Tensor:
    """Logits_TNC of a row of the table, float32."""
    found = []
    for path in paths:
        with safe_open(path, framework="pt") as file:
            found.append(file.get_tensor(row))
    return torch.stack(found)


def _trained(folder: Path, count: int) -> str:
    """How well the models were trained, and what `auto` took, in a few sentences."""
    parts = []
    for kind in KINDS:
        infos = [_info(_path(folder, kind, index)) for index in range(count)]
        test, codes = ([float(info[key]) for info in infos] for key in ACCURACIES)
        parts.append(
            f"{kind}: {100 * sum(test) / count:.1f} % (lowest {100 * min(test):.1f} %), "
            f"codes {100 * min(codes):.0f} % at least"
        )
    taken = [_info(_path(folder, WITH, index))["auto"] for index in range(count)]
    return (
        f"Test accuracy of the classes that took part: {'; '.join(parts)}. `auto` took the paper's "
        f"rule in {taken.count('paper')} of {count} models."
    )


def _info(path: Path) -> dict[str, str]:
    """Read what `_make` wrote beside the logits."""
    with safe_open(path, framework="pt") as file:
        info: dict[str, str] = file.metadata()
    return info


if __name__ == "__main__":
    main()
