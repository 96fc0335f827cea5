"""What a linear model reads in blocks: no seeds, some seconds each, for comparing variants.

    python benchmarks/linear_reading.py embeddings=[gru_ae_day_event,basics]
    python benchmarks/linear_reading.py embeddings=gru_ae_day_event beside=[stat_features,als_64_buy_add_categories]

Ridge regression (Hoerl & Kennard, 1970) of the train window's labels on the block's columns, centred;
AUROC on the validation window, the mean over the labels that some client has there, by the best of a few strengths of
regularization. It says what is in a block, not what the judge's few steps make of it, and knows neither novelty nor
diversity. With ``beside`` each block is read together with those, each at the same root mean square length.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import DictConfig
from rich.table import Table
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import QuantileTransformer

from ubp.cli.command import command
from ubp.cli.config import Common, one_or_several
from ubp.cli.output import closing_line, show
from ubp.data.history import ChallengeData
from ubp.data.targets import TASKS
from ubp.evaluation.profiles import Profiles, load_profiles
from ubp.evaluation.scoring import task_data
from ubp.evaluation.tables import short_name
from ubp.evaluation.tasks import GroundTruth

Matrix = npt.NDArray[np.float64]


def even(profiles: Profiles) -> Matrix:
    """Columns centred, at a root mean square length of 1; statistics by quantiles, as in a merge."""
    vectors = profiles.vectors.astype(np.float64)
    if profiles.name == "stat_features":
        vectors = QuantileTransformer(random_state=0).fit_transform(vectors)
    vectors = vectors - vectors.mean(axis=0)
    return np.asarray(vectors / max(np.sqrt((vectors**2).sum(axis=1).mean()), 1e-12))


def reading(
    columns: Matrix, train: npt.NDArray[np.uint8], validation: npt.NDArray[np.uint8], strengths: Sequence[float]
) -> float:
    """The best mean AUROC over the strengths.

    Args:
        columns: float64 [clients, columns], centred.
        train: labels [clients, targets] to learn from.
        validation: labels to predict; those that all or no clients have do not count.
        strengths: of the regularization, each times the mean square of the singular values.
    """
    varied = np.ptp(validation, axis=0) > 0
    if not varied.any():
        return float("nan")
    scale = (columns**2).sum() / min(columns.shape)
    best = 0.0
    for strength in strengths:
        model = Ridge(strength * scale, solver="cholesky").fit(columns, train[:, varied])
        predicted = model.predict(columns).reshape(len(columns), -1)
        best = max(best, float(roc_auc_score(validation[:, varied], predicted, average="macro")))
    return best


def read_tasks(blocks: Sequence[Profiles], data: ChallengeData, strengths: Sequence[float]) -> dict[str, float]:
    """AUROC by task of some blocks side by side."""
    together = np.concatenate([even(block) for block in blocks], axis=1)
    profiles = Profiles("+".join(block.name for block in blocks), blocks[0].path, data.clients, together)
    found, truth = {}, GroundTruth.load(data.paths)
    for task in TASKS:
        labels = task_data(task, profiles, truth, torch.device("cpu"))
        windows = labels.train.numpy(), labels.validation.numpy()
        found[task.name] = reading(labels.profiles.numpy(), *windows, strengths)
    return found


@command("scripts", "linear_reading")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    data, folder = common.data(submit=False), common.paths.embeddings(submit=False)
    beside = [load_profiles(name, folder, data) for name in config.beside]
    names = [short_name(task.name) for task in TASKS]
    table = Table("block", *names, "sum", title="AUROC of a linear reading, higher is better")
    for name in one_or_several(config, "embeddings", "a block or an entry, or a path of one"):
        figures = list(read_tasks([*beside, load_profiles(name, folder, data)], data, config.strengths).values())
        table.add_row(name, *(f"{figure:.4f}" for figure in figures), f"{sum(figures):.4f}")
    show(table)
    closing_line("blocks read", folder)


if __name__ == "__main__":
    main()
