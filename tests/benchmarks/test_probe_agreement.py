"""How the agreement of two probes is counted."""

from benchmarks.probe_agreement import ordered_alike, probe


def test_only_pairs_that_the_judge_sets_apart_count():
    judged = [4.40, 4.405, 4.30, 4.20]
    assert ordered_alike(judged, [3.0, 2.0, 1.0, 0.0], apart=0.01) == (5, 5)
    assert ordered_alike(judged, [3.0, 2.0, 0.0, 1.0], apart=0.01) == (4, 5)
    assert ordered_alike(judged, [3.0, 2.0, 0.0, 1.0], apart=0.15) == (2, 2)


def test_equal_sums_of_the_probe_are_not_ordered_alike():
    assert ordered_alike([4.4, 4.3], [3.0, 3.0], apart=0.01) == (0, 1)


def test_probes_by_their_names():
    assert (probe("quick").name, probe("judge").name) == ("quick", "judge")
    assert list(probe("quick", "probe.seeds=[7,8]").seeds) == [7, 8]
