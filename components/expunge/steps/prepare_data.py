"""The step that turns a data source into a data set folder."""

import logging
import tempfile
from dataclasses import replace
from pathlib import Path

from expunge.config import PrepareDataConfig
from expunge.data.sources import Loader, find_loader
from expunge.errors import DataError, OperationalError, UserError
from expunge.formats.dataset import DatasetInfo, save_dataset_info


def prepare_data(config: PrepareDataConfig, dataset: Path) -> DatasetInfo:
    """Write the data set folder that `expunge.formats.dataset` describes, whole or not at all.

    `dataset` may exist as an empty folder. It lacks the optional splits where they cannot be read.

    Raises:
        UserError: the source is unknown, or `dataset` is not empty.
        DataError: the source cannot be read; the message names the file.
        OperationalError: the folder cannot be written.
    """
    load = find_loader(config.source)
    try:
        if dataset.exists() and any(dataset.iterdir()):
            raise UserError(f"{dataset} is not empty; give a new or an empty folder")
        dataset.parent.mkdir(parents=True, exist_ok=True)
        # Beside it, and on its file system, so that the rename at the end is all or nothing.
        with tempfile.TemporaryDirectory(prefix=".prepare-", dir=dataset.parent) as staging:
            info, target = _load_splits(load, config, Path(staging))
            save_dataset_info(target, info)  # last: a folder without it is no data set
            target.replace(dataset)
    except OSError as error:
        raise OperationalError(
            f"the data set {dataset} cannot be written ({error}); check the disk, its space and "
            "its permissions"
        ) from error
    return info


def _load_splits(
    load: Loader, config: PrepareDataConfig, staging: Path
) -> tuple[DatasetInfo, Path]:
    """Load what there is of the splits, and return it with the folder that it is in."""
    both = {*config.splits, *config.optional_splits}
    if both != set(config.splits):
        target = staging / "whole"
        target.mkdir()
        # in the order of a training's, so that equal data gives an equal folder
        splits = tuple(split for split in ("train", "test") if split in both)
        try:
            return load(replace(config, splits=splits), target), target
        except DataError as error:
            # It may be gone on purpose: a class's training images can be deleted before a model
            # forgets the class.
            logging.getLogger(__name__).warning(
                "%s; going on without split %s", error, " and ".join(config.optional_splits)
            )
    target = staging / "dataset"
    target.mkdir()
    return load(config, target), target
