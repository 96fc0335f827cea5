"""The trivial baseline that every block is held against: 64 columns, no learning but an SVD.

    python benchmarks/svd_baseline.py submit=False      -> embeddings_local/svd_baseline/
    python scripts/evaluate.py embeddings=svd_baseline probe=quick

63 components of a truncated SVD of log(1 + purchases) by client and category, and log(1 + days since the last
purchase). Written as a folder of ``.npy`` files, the form in which somebody else's block enters a merge.
"""

import numpy as np
import numpy.typing as npt
import polars as pl
from omegaconf import DictConfig
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD

from ubp.blocks.entry import write_entry
from ubp.cli.command import command
from ubp.cli.config import Common
from ubp.cli.output import closing_line
from ubp.data import schema
from ubp.data.history import ChallengeData
from ubp.data.reading import collect
from ubp.data.schema import EventType

COLUMNS = 64


def baseline(data: ChallengeData, seed: int) -> npt.NDArray[np.float32]:
    """float32 [clients, 64] in the order of ``data.clients``; zeros for clients without a purchase."""
    clients = pl.LazyFrame({schema.CLIENT_ID: data.clients, "row": np.arange(len(data.clients))})
    bought = data.with_properties(EventType.PRODUCT_BUY).join(clients, on=schema.CLIENT_ID)
    counts = collect(bought.group_by("row", schema.CATEGORY).agg(pl.len().log1p()).sort("row", schema.CATEGORY))
    last = collect(bought.group_by("row").agg(pl.col(schema.TIMESTAMP).max()))
    _, columns = np.unique(counts[schema.CATEGORY].to_numpy(), return_inverse=True)
    matrix = csr_matrix((counts["len"].to_numpy(), (counts["row"].to_numpy(), columns)))
    matrix.resize(len(data.clients), matrix.shape[1])
    vectors = np.zeros((len(data.clients), COLUMNS), np.float32)
    vectors[:, :-1] = TruncatedSVD(COLUMNS - 1, random_state=seed).fit_transform(matrix)
    days = (data.as_of - last[schema.TIMESTAMP]).dt.total_hours() / 24
    vectors[last["row"].to_numpy(), -1] = np.log1p(days.to_numpy())
    return vectors


@command("scripts", "make_demo_data")
def main(config: DictConfig) -> None:
    common = Common.of(config)
    data = common.data()
    folder = common.paths.embeddings(common.submit) / "svd_baseline"
    vectors = baseline(data, common.seed)
    write_entry(folder, data.clients, vectors)
    closing_line("svd_baseline", folder, *vectors.shape)


if __name__ == "__main__":
    main()
