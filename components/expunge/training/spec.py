"""One training: its recipe, its data, and where the model and the checkpoints go."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.config import TrainConfig

OnEpoch = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainingSpec:
    """What every launcher takes and the loop gets, in this process or in another."""

    config: TrainConfig
    dataset: Path
    model: Path
    checkpoints: Path
    # Whether the loop records its checkpoints in the ledger. On several nodes the step does it for
    # the whole folder on the volume: a node's pod has no ledger.
    keeps_ledger: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, with absolute paths: a process may run in another folder."""
        paths = {"dataset": self.dataset, "model": self.model, "checkpoints": self.checkpoints}
        return {
            **{key: str(path.resolve()) for key, path in paths.items()},
            "config": self.config.to_json(),
            "keeps_ledger": self.keeps_ledger,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "TrainingSpec":
        """Return the training that `to_json` has written."""
        return cls(
            config=TrainConfig.from_json(raw["config"]),
            dataset=Path(raw["dataset"]),
            model=Path(raw["model"]),
            checkpoints=Path(raw["checkpoints"]),
            keeps_ledger=raw["keeps_ledger"],
        )
