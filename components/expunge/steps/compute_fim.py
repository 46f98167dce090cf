"""The Fisher step: the total over all codes of a model, or the terms that a request needs."""

from collections.abc import Sequence
from pathlib import Path

from expunge.device import best_device, gradient_chunk
from expunge.errors import UserError
from expunge.formats.fisher import FISHER, load_fisher, save_fisher, save_forget_terms
from expunge.formats.model import load_model


def compute_fim(model: Path, fisher: Path, *, classes: Sequence[int] = ()) -> dict[str, object]:
    """Write the Fisher information of the model's codes into the folder `fisher`.

    Without `classes`: `fim_total.safetensors`, the sum of g_c ** 2 over all codes. It is kept with
    a registered version, so that a later request costs one gradient for each class.
    With `classes`: the terms of both rules (F_f, F_r and the mean gradient). F_r comes from the
    total if the model folder has one that was computed in the same way.

    Raises:
        UserError: a class has no code, or all codes are to be forgotten.
    """
    import torch

    from expunge.core.fisher import code_gradients, forget_terms

    stored = load_model(model)
    device = best_device()
    provenance = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": "float32",
        "chunk": str(gradient_chunk(device)),
    }
    module = stored.module.to(device)
    codes_KCHW = stored.codes.images_KCHW.to(device)
    classes_K = stored.codes.classes_K.to(device)
    held = [int(index) for index in classes_K]
    chunk = gradient_chunk(device)
    if not classes:
        total = code_gradients(module, codes_KCHW, classes_K, chunk=chunk).squares
        save_fisher(fisher, total, provenance)
        return {"classes": held, "gradients": len(held)}
    missing = sorted(set(classes) - set(held))
    if missing:
        raise UserError(f"classes {missing} have no code in this model; it has codes of {held}")
    if set(classes) == set(held):
        raise UserError("all classes are to be forgotten; at least one has to remain")
    # The total is only as good as the sum of its terms, and those differ in their last digits from
    # one device or library to the next: F_r would be that noise for a class with small gradients.
    known, how = load_fisher(model) if (model / FISHER).exists() else (None, {})
    usable = known is not None and how == provenance
    terms = forget_terms(
        module,
        codes_KCHW,
        classes_K,
        torch.isin(classes_K, torch.tensor(list(classes), device=device)),
        total={n: value.to(device) for n, value in known.items()} if usable and known else None,
        chunk=chunk,
    )
    save_forget_terms(fisher, terms)
    gradients = len(held) if terms.direct else len(classes)
    return {
        "classes": sorted(classes),
        "gradients": gradients,
        "retain_computed_directly": terms.direct,
        "elements_without_digits": terms.lost,
    }
