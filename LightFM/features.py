"""What describes skus and clients, as sparse matrices: a feature of their own, and one for each code and position.

A code is a label: position i with code c is a feature of its own (16 × 256 of them a side), never a number. The
features' weights are not normalised to a sum of 1, as LightFM's builders would by themselves: that would make every
step a fraction of what it should be (docs/ablations.md).
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import csr_matrix, hstack, identity

from ubp.data import schema
from ubp.data.reading import collect

CODE_FEATURES: Final = schema.CODES * schema.CODE_BOOK

Ids = npt.NDArray[np.int64]


def numbers(known: Ids, ids: Ids) -> npt.NDArray[np.int32]:
    """Where ids stand among the known ones: int32, as LightFM's loops want them.

    Args:
        known: int64, ascending.
        ids: int64, all of them known.

    Raises:
        KeyError: an id is not known.
    """
    found = np.searchsorted(known, ids).clip(max=max(len(known) - 1, 0))
    unknown = len(ids) if not len(known) else int((known[found] != ids).sum())
    if unknown:
        raise KeyError(f"{unknown:,} ids are not known")
    return found.astype(np.int32)


def feature_matrix(ids: Ids, codes: pl.LazyFrame, weight: float) -> csr_matrix:
    """What LightFM sums up for each id: a feature of its own, and those of its codes.

    Args:
        ids: int64, ascending.
        codes: see `code_matrix`.
        weight: of an id's codes together, the feature of its own weighs 1; 0 leaves the codes out.

    Returns:
        float32 [ids, ids (+ 4,096 if weight is not 0)].
    """
    own = identity(len(ids), dtype=np.float32, format="csr")
    return hstack([own, code_matrix(ids, codes, weight)], format="csr") if weight else own


def code_matrix(ids: Ids, codes: pl.LazyFrame, weight: float) -> csr_matrix:
    """The codes of ids: the column of code c at position i is 256 i + c.

    Args:
        ids: int64, ascending.
        codes: first column ids, then ``codes`` Array(UInt8, 16); any ids, any number of rows for one.
        weight: of an id's codes together.

    Returns:
        float32 [ids, 4,096]. Each position has a 16th of the weight, shared by an id's codes there as often
        as each occurs. An id without codes has zeros.
    """
    shares = code_shares(codes, ids)
    columns = shares["position"].cast(pl.Int32) * schema.CODE_BOOK + shares["code"].cast(pl.Int32)
    values = shares["share"].to_numpy() * np.float32(weight / schema.CODES)
    placed = (numbers(ids, shares["id"].to_numpy()), columns.to_numpy())
    return csr_matrix((values, placed), (len(ids), CODE_FEATURES))


def code_shares(codes: pl.LazyFrame, ids: npt.NDArray[np.int64]) -> pl.DataFrame:
    """How clients' searches, or skus' names, spread over the codes.

    Args:
        codes: see `feature_matrix`.
        ids: int64, those that are asked for, each once.

    Returns:
        ``id``, ``position`` and ``code`` UInt8, ``share`` Float32: the shares of an id's codes at one position
        add up to 1. Sorted. An id without codes has no rows.
    """
    named = codes.rename({codes.collect_schema().names()[0]: "id"})
    known = collect(named.join(pl.LazyFrame({"id": ids}), on="id", how="semi")).lazy()
    counted = pl.concat(
        known.group_by("id", code=pl.col("codes").arr.get(position))
        .agg(count=pl.len())
        .with_columns(position=pl.lit(position, pl.UInt8))
        for position in range(schema.CODES)
    )
    share = (pl.col("count") / pl.col("count").sum().over("id", "position")).cast(pl.Float32)
    return collect(counted.sort("id", "position", "code").select("id", "position", "code", share=share))
