"""The error of whatever finds none of its events."""

from datetime import timedelta

import numpy as np

from ubp.data.history import ChallengeData
from ubp.data.lacking import no_events
from ubp.data.schema import EventType

BUY, SEARCH = EventType.PRODUCT_BUY, EventType.SEARCH_QUERY


def test_one_line_names_the_types_counts_their_events_and_says_what_to_do(make_history, tmp_path):
    history = make_history(empty=[SEARCH])
    bought = history.events[BUY]
    paths = history.write(tmp_path)
    paths.input.mkdir()
    some = bought["client_id"].unique().sort()[:3]
    np.save(paths.relevant_clients, some.to_numpy())
    data = ChallengeData(paths, submit=True)
    by_some = int(bought["client_id"].is_in(some.implode()).sum())
    (line,) = no_events(data, [SEARCH, "product_buy"]).messages
    assert line == (
        f"{paths.raw}: no usable events: {len(bought):,} events of search_query or product_buy before "
        f"{data.as_of:%Y-%m-%d %H:%M}, {by_some:,} of them by relevant clients; leave the block out, and merge with "
        "missing=skip"
    )
    known = data.before(data.as_of - timedelta(days=40))
    earlier = int((bought["timestamp"] < known.as_of).sum())
    assert (
        f": {earlier:,} events of product_buy before {known.as_of:%Y-%m-%d}"
        in no_events(known, [BUY], "too few", "wait").messages[0]
    )
