"""Membership inference: which training images an attacker recognises by how sure the outputs are.

Shapes: N images, C classes. Source: the attack of Chundawat et al. (2023) and Foster et al. (SSD,
2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expunge.core.attacks.case import Case, Seen
from expunge.core.heads import Observed

# Below this area under its own ROC curve, an attacker tells members from others hardly better than
# a coin, and what it says of the forgotten samples is noise.
LEAST_AUC = 0.55


def measure(case: Case, seen: Seen) -> list[float | None]:
    """Return the share of each forgotten class's training samples that are called members.

    It is None for every class where the attacker does not work on this model.
    """
    found = attack_model(seen, case.forget)
    return [*found.members] if found.auc >= LEAST_AUC else [None] * len(case.forget)


@dataclass(frozen=True)
class Membership:
    """What the attacker found.

    `members` is the share of each forgotten class's training samples called members; `auc` the
    attacker's own on retained data.
    """

    auc: float
    members: list[float]


def attack_model(seen: Seen, forget: Sequence[int]) -> Membership:
    """Return what the attacker finds in a model."""
    return infer_members(seen.retain_train, seen.retain_test, seen.forget_train, forget)


def infer_members(
    retain_train: Observed, retain_test: Observed, forget_train: Observed, forget: Sequence[int]
) -> Membership:
    """Learn to tell training samples from test samples, and judge the forgotten ones.

    The attacker is a logistic regression on the entropy of the softmax, retained training samples
    against retained test samples, balanced.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    inside, outside = (_compute_entropy(part.logits_NC) for part in (retain_train, retain_test))
    features_N1 = np.concatenate([inside, outside])[:, None]
    labels_N = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    attacker = LogisticRegression(class_weight="balanced").fit(features_N1, labels_N)
    auc = roc_auc_score(labels_N, attacker.decision_function(features_N1))
    entropies = [_compute_entropy(forget_train.of(index).logits_NC)[:, None] for index in forget]
    return Membership(float(auc), [float(attacker.predict(rows).mean()) for rows in entropies])


def _compute_entropy(logits_NC: Tensor) -> np.ndarray:
    """Return the entropy of the softmax in nats, shape N."""
    entropy: np.ndarray = torch.special.entr(logits_NC.softmax(dim=1)).sum(dim=1).cpu().numpy()
    return entropy
