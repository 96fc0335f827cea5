"""Batches of events as the model reads them: each sku, url and query once, and the places of all that is real, flat.

Gathered before a batch leaves the CPU, so that a GPU is never asked how many of something there are.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from sequential_encoder.events import (
    AGE,
    COUNTS,
    DAY_AGE,
    DAY_TOKENS,
    EVENT,
    GAP,
    HOUR,
    IS_TARGET,
    ITEM,
    ITEM_TARGETS,
    KIND_BITS,
    KINDS,
    LOG_SHARE,
    POPULARITY,
    SUBJECT,
    TOKEN,
    URL,
    URL_TARGETS,
    WAIT,
    WEEKDAY,
)
from ubp.data import schema
from ubp.training.content import CODE, HASHES, IDS, PRICE
from ubp.training.model import LENGTHS, Batch
from ubp.training.snapshot_source import LABELS, SCALARS

# Keys that `flat` adds: places of tokens and days among all of the batch, padding counted.
TOKEN_AT, NEXT_AT, LAST_AT, DAY_AT = "token_at", "next_at", "last_at", "day_at"
# Of each day, what came before it, of each client; see `_amounts`.
AMOUNT_OF, AMOUNT_AT, AMOUNT_TOKEN = "amount_of", "amount_at", "amount_token"
CATEGORY_IDS, CATEGORY_EVENT, CATEGORY_ROW = "category_ids", "category_event", "category_row"
# Events of each token, one token after the other, as places among the pairs of type and subject; where each begins.
BAG, OFFSETS, PAIR_EVENT, PAIR_SUBJECT = "bag", "offsets", "pair_event", "pair_subject"
# Of a sampled softmax: where it is predicted, what, how popular that is, and beside what.
AT, OWN, BEGIN, DRAWN = "at", "own", "begin", "drawn"

SUBJECTS, CATEGORIES = "subjects", "categories"
AMOUNTS: Final = (SUBJECTS, CATEGORIES)
_HASH_BITS: Final = 32
_TARGETS: Final = {ITEM: ITEM_TARGETS, URL: URL_TARGETS}


def flat(batch: Batch, amounts: Sequence[str] = AMOUNTS) -> Batch:
    """A batch of `sequential_encoder.events.EventSource` as the model reads it, by what its values say.

    Each sku, url and query once, each pair of event type and subject once; padding cut off; and the places of what
    is real. Gathered here, before the batch leaves the CPU.
    """
    if TOKEN_AT in batch:
        return batch
    time = int(batch[LENGTHS].max())
    real = torch.arange(time) < batch[LENGTHS][:, None]
    found = {name: batch[name][:, :time] for name in (AGE, GAP, WAIT, HOUR, WEEKDAY, COUNTS)}
    found = {LENGTHS: batch[LENGTHS]} | found | {DAY_AGE: batch[DAY_AGE], DAY_TOKENS: batch[DAY_TOKENS]}
    found[TOKEN_AT] = _places(real)
    found |= _subjects(batch, time)
    found |= _amounts(batch, found, time, amounts)
    if LABELS in batch:
        asked = batch[DAY_TOKENS].flatten() > 0
        found[DAY_AT] = _places(asked)
        found |= {name: batch[name].flatten(0, 1)[asked] for name in (LABELS, *SCALARS)}
    if IS_TARGET in batch:
        found[NEXT_AT] = _places(batch[IS_TARGET][:, :time])
        found[LAST_AT] = torch.arange(len(real)) * time + batch[LENGTHS] - 1
    return found


def unique_of(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The different numbers, ascending, and the place of each of these: int64 [different] and int64 [numbers]."""
    different, places = np.unique(numbers.numpy(), return_inverse=True)
    return torch.from_numpy(different), torch.from_numpy(places)


def _places(mask: Tensor) -> Tensor:
    """Where a mask of any shape is true, flat: int64."""
    return mask.flatten().nonzero()[:, 0]


def _subjects(batch: Batch, time: int) -> dict[str, Tensor]:
    """Contents of each kind, each subject once, and where events, targets and negatives are among them."""
    real = batch[SUBJECT] >= 0
    drawn = [name for name in (ITEM, URL) if f"{name}:{SUBJECT}" in batch]
    codes = torch.cat([batch[SUBJECT][real], *(batch[f"{name}:{SUBJECT}"].flatten() for name in drawn)])
    contents = {
        key: torch.cat([batch[key][real], *(batch[f"{name}:{key}"].flatten(0, 1) for name in drawn)])
        for key in (IDS, PRICE, CODE)
    }
    unique, places = unique_of(codes)
    first = torch.empty(len(unique), dtype=torch.int64)
    first[places] = torch.arange(len(codes))
    kinds = unique >> KIND_BITS
    found, shift = {}, torch.empty(len(unique), dtype=torch.int64)
    # Each kind begins with one that nothing is about: so all weights are used in each batch, as ddp wants it.
    for number, kind in enumerate(KINDS):
        own = kinds == number
        shift[own] = number + 1
        for key, values in contents.items():
            rows = values[first[own]]
            found[f"{kind}:{key}"] = torch.cat([rows.new_zeros(1, *rows.shape[1:]), rows])
    places = places + shift[places]
    events = int(real.sum())
    of_event = places[:events]
    event = batch[EVENT][real]
    subjects = len(unique) + len(KINDS)
    pairs, bag = unique_of(event * subjects + of_event)
    found[PAIR_EVENT], found[PAIR_SUBJECT] = pairs // subjects, pairs % subjects
    found[BAG] = bag
    token = batch[TOKEN][real]
    first_of_token = torch.ones(events, dtype=torch.bool)
    row = torch.arange(len(real))[:, None].expand(real.shape)[real]
    first_of_token[1:] = (token[1:] != token[:-1]) | (row[1:] != row[:-1])
    found[OFFSETS] = _places(first_of_token)
    grid = torch.full(real.shape, -1, dtype=torch.int64)
    grid[real] = of_event
    begin = events
    for name in drawn:
        count = batch[f"{name}:{SUBJECT}"].numel()
        found[f"{name}:{DRAWN}"] = places[begin : begin + count]
        found |= {f"{name}:{key}": batch[f"{name}:{key}"].flatten() for key in (LOG_SHARE, POPULARITY)}
        begin += count
        targets = batch[_TARGETS[name]][:, :time]  # [rows, time, targets], places of events
        wanted = targets >= 0
        own = grid.gather(1, targets.clamp(min=0).flatten(1)).view(targets.shape)
        found[f"{name}:{OWN}"] = own[wanted]
        popularity = batch[POPULARITY].gather(1, targets.clamp(min=0).flatten(1)).view(targets.shape)
        found[f"{name}:{BEGIN}"] = popularity[wanted]
        found[f"{name}:{AT}"] = _places(wanted) // targets.shape[2]
    return found


def _amounts(batch: Batch, found: Batch, time: int, names: Sequence[str]) -> dict[str, Tensor]:
    """Of each of `AMOUNTS` asked for: each row's values, once, and which of them and which token each event is of."""
    real = batch[SUBJECT] >= 0
    row = torch.arange(len(real))[:, None].expand(real.shape)[real]
    token = row * time + batch[TOKEN][real]
    views: dict[str, Tensor] = {}
    if SUBJECTS in names:
        views |= _bags(SUBJECTS, row, found[BAG], token, len(real))
    if CATEGORIES in names:
        # Those of skus are the first contents; a category's hashes as one number.
        ids = found[f"{schema.SKU}:{IDS}"][:, HASHES:].long()
        categories, category_of = unique_of(ids[:, 0] << _HASH_BITS | ids[:, 1])
        items = found[PAIR_SUBJECT][found[BAG]]
        own = items < len(ids)
        pairs, place = unique_of(batch[EVENT][real][own] * len(categories) + category_of[items[own]])
        views |= _bags(CATEGORIES, row[own], place, token[own], len(real))
        hashes = [categories >> _HASH_BITS, categories & (1 << _HASH_BITS) - 1]
        views[CATEGORY_IDS] = torch.stack(hashes, dim=1).int()
        views |= {CATEGORY_EVENT: pairs // len(categories), CATEGORY_ROW: pairs % len(categories)}
    return views


def _bags(name: str, row: Tensor, value: Tensor, token: Tensor, rows: int) -> dict[str, Tensor]:
    """What each row met, each value once.

    Args:
        name: of the view.
        row: int64 [events], whose event it is.
        value: int64 [events], what it is about.
        token: int64 [events], its token.
        rows: how many there are.

    Returns:
        `AMOUNT_OF`: int64 [rows, most values of a row], 0 behind the last. `AMOUNT_AT`: int64 [events], flat places
        among these. `AMOUNT_TOKEN`: the tokens. Behind the view's name.
    """
    count = int(value.max()) + 1 if len(value) else 1
    pairs, place = unique_of(row * count + value)
    owner = pairs // count
    counts = torch.bincount(owner, minlength=rows)
    inside = torch.arange(len(pairs)) - (counts.cumsum(0) - counts)[owner]
    most = max(int(counts.max()), 1)
    of = torch.zeros(rows, most, dtype=torch.int64)
    of[owner, inside] = pairs % count
    found = {AMOUNT_OF: of, AMOUNT_AT: (owner * most + inside)[place], AMOUNT_TOKEN: token}
    return {f"{name}:{key}": values for key, values in found.items()}
