"""How long forgetting itself takes: Fisher and perturbation at a fixed strength, and calibration.

    python tests/benchmarks/speed.py

After imports and loading, on the device that the steps would take; medians of several runs. The
models learn their ten codes by heart first, as a trained model has, so that calibration searches
what it would search there; what they know of images does not matter to the time.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from forgetting import machine
from torch import Tensor, nn

from expunge.core.codes import draw_codes
from expunge.core.fisher import ForgetTerms, code_gradients, code_losses, forget_terms
from expunge.core.rules.calibrate import calibrate
from expunge.core.rules.paper import compute_change, compute_ratio, compute_shape
from expunge.device import best_device, gradient_chunk
from expunge.models import build_model

MODELS = {"mlp": (1, 28, 28), "resnet20": (3, 32, 32), "resnet18-cifar": (3, 32, 32)}
CLASSES = 10


def main() -> None:
    """Print one row for each model."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeat", type=int, default=7)
    repeat = options.parse_args().repeat
    print(f"{machine()}, {torch.get_num_threads()} threads; median of {repeat}\n")
    print("| model | Fisher, total known | Fisher, direct | perturb | forgetting | calibration |")
    print("| --- | --- | --- | --- | --- | --- |")
    for arch in MODELS:
        print(_row(arch, repeat), flush=True)


def _row(arch: str, repeat: int) -> str:
    device = best_device()
    chunk = gradient_chunk(device)
    model, codes_KCHW = _memorised(arch, device)
    classes_K = torch.arange(CLASSES, device=device)
    forget_K = classes_K == 0
    total = code_gradients(model, codes_KCHW, classes_K, chunk=chunk).squares

    def known() -> ForgetTerms:
        return forget_terms(model, codes_KCHW, classes_K, forget_K, total, chunk=chunk)

    def direct() -> ForgetTerms:
        return forget_terms(model, codes_KCHW, classes_K, forget_K, chunk=chunk)

    terms = direct()
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def perturb() -> None:
        ratio = compute_ratio(terms.forget, terms.retain)
        change = compute_change(compute_shape(weights, ratio), ratio, -1, (0.0, 10.0))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(change[name])

    seconds = [_time(step, repeat, device) for step in (known, direct, perturb)]
    search = _time(
        lambda: calibrate(model, codes_KCHW, classes_K, forget_K, terms=terms),
        min(repeat, 3),
        device,
    )
    note = "" if not known().direct else " (fell back)"
    cells = [f"{1000 * value:.0f} ms" for value in (*seconds, seconds[1] + seconds[2], search)]
    cells[0] += note
    return f"| {arch} | {' | '.join(cells)} |"


def _memorised(arch: str, device: torch.device) -> tuple[nn.Module, Tensor]:
    """Train a model on nothing but its codes, until each has a loss under 0.01."""
    torch.manual_seed(0)
    model = build_model(arch, MODELS[arch], CLASSES).to(device)
    generator = torch.Generator().manual_seed(0)
    codes_KCHW = draw_codes(range(CLASSES), CLASSES, MODELS[arch], generator).to(device)
    classes_K = torch.arange(CLASSES, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(300):
        loss = code_losses(model(codes_KCHW), classes_K).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            worst = code_losses(model(codes_KCHW), classes_K).max()
        model.train()
        if worst < 0.01:
            break
    return model.eval(), codes_KCHW


def _time(step: Callable[[], object], repeat: int, device: torch.device) -> float:
    """Median seconds of `repeat` calls, after one that is not counted."""
    step()
    taken = []
    for _ in range(repeat):
        since = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - since)
    return median(taken)


if __name__ == "__main__":
    main()
