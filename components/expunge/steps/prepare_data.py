"""The step that turns a data source into a data set folder."""

import tempfile
from pathlib import Path

from expunge.config import PrepareDataConfig
from expunge.data.sources import find_loader
from expunge.errors import OperationalError, UserError
from expunge.formats.dataset import DatasetInfo, save_dataset_info


def prepare_data(config: PrepareDataConfig, dataset: Path) -> DatasetInfo:
    """Write the data set folder that `expunge.formats.dataset` describes, whole or not at all.

    `dataset` may exist as an empty folder.

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
            target = Path(staging) / "dataset"
            target.mkdir()
            info = load(config, target)
            save_dataset_info(target, info)  # last: a folder without it is no data set
            target.replace(dataset)
    except OSError as error:
        raise OperationalError(
            f"the data set {dataset} cannot be written ({error}); check the disk, its space and "
            "its permissions"
        ) from error
    return info
