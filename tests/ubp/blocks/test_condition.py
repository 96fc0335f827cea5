"""Conditioned profiles against slow obvious sums; figures of profiles; kept and restored to the same bits."""

import numpy as np
import pytest

from ubp.blocks import condition
from ubp.blocks.condition import LENGTH, RATIO, ConditionSettings, Figures, FittedCondition, figures_of, warnings_of
from ubp.io.errors import UserError

WIDTHS = [3, 5, 2]


def draw(clients=200, seed=0):
    """Three blocks of unlike lengths, none of them centred."""
    chance = np.random.default_rng(seed)
    blocks = [
        chance.normal(mean, spread, (clients, width))
        for mean, spread, width in zip((5, -1, 0), (1, 9, 0.01), WIDTHS, strict=True)
    ]
    return np.concatenate(blocks, axis=1).astype(np.float32)


def conditioned(matrix, weights=None, constant=1.5, offset=0.0, **settings):
    chosen = ConditionSettings(constant=constant, offset=offset, **settings)
    return FittedCondition.fit(chosen, matrix, WIDTHS, weights).apply(matrix.copy())


def length(rows):
    return np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1).mean())


def parts(matrix):
    return np.split(matrix, np.cumsum(WIDTHS)[:-1], axis=1)


def test_columns_are_centred_and_blocks_have_one_length_beside_a_constant():
    found = conditioned(draw())
    assert found.dtype == np.float32
    assert found.shape == (200, 11)
    assert found[:, :-1].mean(axis=0, dtype=np.float64) == pytest.approx(0, abs=1e-4)
    assert [length(part) for part in parts(found[:, :-1])] == pytest.approx([LENGTH / np.sqrt(3)] * 3, rel=1e-4)
    assert length(found[:, :-1]) == pytest.approx(LENGTH, rel=1e-4)
    assert (found[:, -1] == 1.5 * LENGTH).all()


def test_it_is_the_slow_obvious_sum():
    matrix = draw()
    wanted = []
    for block in parts(matrix.astype(np.float64)):
        centred = block - block.mean(axis=0)
        wanted.append(centred / np.sqrt((centred**2).sum(axis=1).mean()))
    wanted = np.concatenate(wanted, axis=1) * LENGTH / np.sqrt(3)
    assert conditioned(matrix, constant=0) == pytest.approx(wanted, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("rotate", [None, 4])
def test_an_offset_moves_every_column_by_a_share_of_its_deviation(rotate):
    matrix = draw()
    plain, moved = conditioned(matrix, rotate=rotate), conditioned(matrix, rotate=rotate, offset=0.4)
    assert moved[:, :-1] == pytest.approx(plain[:, :-1] + 0.4 * plain[:, :-1].std(axis=0), rel=1e-3, abs=1e-3)
    assert (moved[:, -1] == plain[:, -1]).all()
    assert figures_of(moved).common == pytest.approx(0.4 / np.sqrt(1 + 0.4**2), rel=1e-3)


@pytest.mark.parametrize(("columns", "rotate", "offset"), [(500, None, 0), (501, None, 0.4), (501, 20, 0)])
def test_the_offset_follows_the_columns_that_are_kept(columns, rotate, offset):
    matrix = np.random.default_rng(0).normal(5, 2, (600, columns)).astype(np.float32)
    found = FittedCondition.fit(ConditionSettings(rotate=rotate), matrix, [columns]).apply(matrix.copy())[:, :-1]
    shares = found.mean(axis=0, dtype=np.float64) / found.std(axis=0, dtype=np.float64)
    assert shares == pytest.approx(offset, abs=1e-3)


def test_other_clients_are_moved_by_the_offset_of_the_fit():
    fitted = FittedCondition.fit(ConditionSettings(constant=0, offset=0.4), draw(), WIDTHS)
    without = FittedCondition.fit(ConditionSettings(constant=0, offset=0), draw(), WIDTHS)
    others = 3 * draw(clients=30, seed=1)
    moved = fitted.apply(others.copy()) - without.apply(others.copy())
    assert moved == pytest.approx(np.tile(fitted.offset, (30, 1)), abs=1e-3)


def test_a_weight_is_of_a_blocks_length():
    found = [length(part) for part in parts(conditioned(draw(), weights=[1, 3, 0.5], constant=0))]
    assert np.array(found) / found[0] == pytest.approx([1, 3, 0.5], rel=1e-4)


def test_blocks_may_keep_their_lengths():
    matrix = draw()
    found = [length(part) for part in parts(conditioned(matrix, block_scale="none"))[:2]]
    wanted = [length(part - part.mean(axis=0)) for part in parts(matrix)[:2]]
    assert found[0] / found[1] == pytest.approx(wanted[0] / wanted[1], rel=1e-4)


def test_without_centring_the_means_stay():
    found = conditioned(draw(), centre=False)
    assert abs(found[:, :3].mean()) > 1


def test_a_rotation_keeps_distances():
    matrix = draw()
    plain, turned = conditioned(matrix, constant=0), conditioned(matrix, constant=0, rotate=10)
    assert turned.shape == plain.shape
    assert plain @ plain.T == pytest.approx(turned @ turned.T, abs=0.05)
    assert conditioned(matrix, rotate=4).shape == (200, 5)


def test_a_rotation_wider_than_the_data_is_cut():
    assert conditioned(draw(clients=6), rotate=300).shape == (6, 7)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_clients_are_turned_as_many_are(rows):
    matrix = draw()
    fitted = FittedCondition.fit(ConditionSettings(rotate=4), matrix, WIDTHS)
    found = fitted.apply(matrix[:rows].copy())
    assert found.shape == (rows, 5)
    assert found == pytest.approx(fitted.apply(matrix.copy())[:rows], rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("rotate", [None, 1, 4, 300])
@pytest.mark.parametrize("constant", [None, 0.0, 0.01, 2.0])
def test_the_columns_are_known_before_the_fit(rotate, constant):
    chosen = ConditionSettings(constant=constant, rotate=rotate)
    fitted = FittedCondition.fit(chosen, draw(), WIDTHS)
    columns = min(rotate or 10, 10) + (constant != 0)
    assert (chosen.columns(10), fitted.columns, fitted.apply(draw()).shape[1]) == (columns,) * 3


@pytest.mark.parametrize(("clients", "step"), [(50, 1), (51, 2), (100, 2), (101, 3)])
def test_of_many_clients_every_so_many_is_looked_at(clients, step, monkeypatch):
    monkeypatch.setattr(condition, "_ROWS", 50)
    matrix = draw(clients=clients)
    turned, moved = (conditioned(matrix, constant=0, rotate=4, offset=offset) for offset in (0, 0.4))
    assert moved - turned == pytest.approx(np.tile(0.4 * turned[::step].std(axis=0), (clients, 1)), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("value", [7, 0.1, 1e-3 / 3])
def test_a_block_without_spread_stays_without_and_harms_nobody(value):
    matrix = draw()
    matrix[:, :3] = value
    found = conditioned(matrix)
    assert np.abs(found[:, :3]).max() < 1e-3
    assert length(found[:, :-1]) == pytest.approx(LENGTH, rel=1e-4)


def test_a_spread_that_is_rounding_is_none():
    matrix = draw()
    matrix[:, :3] = 7
    matrix[::2, :3] = np.nextafter(np.float32(7), np.float32(8))
    assert np.abs(conditioned(matrix)[:, :3]).max() < 1e-3


@pytest.mark.parametrize(("columns", "least", "most"), [(20, 2, 2), (700, 2.1, 2.9), (2000, 3, 3)])
def test_the_constant_follows_the_rows_ratio(columns, least, most):
    matrix = np.random.default_rng(0).normal(5, 2, (5_000, columns)).astype(np.float32)
    found = FittedCondition.fit(ConditionSettings(offset=0), matrix, [columns]).apply(matrix.copy())
    constant = found[0, -1] / LENGTH
    assert least <= constant <= most
    if least < most:
        assert figures_of(found).row_ratio == pytest.approx(RATIO, abs=0.1)


def test_profiles_that_are_all_alike_are_refused():
    with pytest.raises(UserError, match="all clients have the same profile"):
        conditioned(np.ones((5, 10), np.float32))
    with pytest.raises(UserError, match="all clients have the same profile"):
        conditioned(draw(clients=1))


@pytest.mark.parametrize(
    ("widths", "weights", "says"),
    [
        ([3, 5], None, "8 columns and 2 weights for 10"),
        (WIDTHS, [1.0, 2.0], "10 columns and 2 weights for 10"),
        ([3, 5], [1.0], "8 columns and 1 weights for 10"),
    ],
)
def test_widths_and_weights_that_do_not_fit(widths, weights, says):
    with pytest.raises(ValueError, match=says):
        FittedCondition.fit(ConditionSettings(), draw(), widths, weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"constant": -1.0}, "condition.constant=-1.0: must be at least 0"),
        ({"rotate": 0}, "condition.rotate=0: must be at least 1"),
        ({"offset": -0.1}, "condition.offset=-0.1: must be at least 0, or null"),
        ({"block_scale": "some"}, "condition.block_scale=some: must be equal or none"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        ConditionSettings(**settings)


@pytest.mark.parametrize("settings", [{}, {"rotate": 4}, {"constant": 0.0}, {"offset": 0.0}])
def test_restored_it_gives_the_same_bits_to_other_clients(settings):
    arrays = {}
    fitted = FittedCondition.fit(ConditionSettings(**settings), draw(), WIDTHS)
    restored = FittedCondition.from_state(fitted.state("condition", arrays), arrays)
    others = draw(clients=30, seed=1)
    assert restored.columns == fitted.columns
    assert (restored.apply(others.copy()) == fitted.apply(others.copy())).all()


def test_what_was_kept_before_there_were_offsets_has_none():
    arrays = {}
    fitted = FittedCondition.fit(ConditionSettings(offset=0), draw(), WIDTHS)
    state = fitted.state("condition", arrays)
    del arrays["condition.offset"]
    assert (FittedCondition.from_state(state, arrays).apply(draw()) == fitted.apply(draw())).all()


def test_room_that_begins_with_the_blocks_is_filled_without_a_copy():
    matrix = draw()
    fitted = FittedCondition.fit(ConditionSettings(), matrix, WIDTHS)
    room = np.empty((200, 11), np.float32)
    room[:, :-1] = matrix
    assert fitted.apply(room[:, :-1], room) is room
    assert (room == fitted.apply(matrix)).all()


def test_float16_loses_only_its_rounding():
    """Every value keeps its eleven bits: none is so small or so large that float16 has fewer for it."""
    found = conditioned(draw())
    halves = found.astype(np.float16).astype(np.float64)
    assert (np.abs(halves - found) <= 2.0**-11 * np.abs(found) + 2.0**-25).all()
    assert (found[:, -1] == halves[:, -1]).all()
    assert figures_of(halves).common < 1e-3


def test_figures_are_the_slow_obvious_ones():
    matrix = draw().astype(np.float64)
    figures = figures_of(matrix)
    assert figures.common == pytest.approx(np.linalg.norm(matrix.mean(axis=0)) / length(matrix))
    assert figures.row_ratio == pytest.approx(np.mean([np.abs(row).sum() / np.sqrt((row**2).sum()) for row in matrix]))
    assert figures.constant == 0


def test_figures_do_not_depend_on_the_unit():
    figures, small = figures_of(draw()), figures_of(1e-6 * draw())
    assert (small.common, small.row_ratio) == pytest.approx((figures.common, figures.row_ratio), rel=1e-3)


def test_constant_columns_count_together():
    matrix = np.hstack([draw(), np.full((200, 1), 3.0), np.full((200, 1), -4.0)])
    assert figures_of(matrix).constant == pytest.approx(5 / length(draw()), rel=1e-4)


def test_figures_as_they_stand_in_a_log():
    assert (
        str(Figures(0.371, 2.0, 8.96)) == "common to all 0.37 of the length, a constant of 2.00 lengths, row ratio 9.0"
    )
    assert str(Figures(0.371, 0.0, 8.96)) == "common to all 0.37 of the length, row ratio 9.0"


def test_figures_at_the_limits_are_good():
    assert warnings_of({"a": Figures(0.5, 0.0, 12.0)}) == []


def test_a_constant_column_is_told_apart_from_what_is_common():
    figures = figures_of(conditioned(draw(), constant=2.0))
    assert figures.common < 1e-3
    assert figures.constant == pytest.approx(2.0, rel=1e-4)
    assert warnings_of({"a": figures}) == []


def test_the_default_is_not_warned_of():
    matrix = np.random.default_rng(0).normal(5, 2, (600, 900)).astype(np.float32)
    found = figures_of(FittedCondition.fit(ConditionSettings(), matrix, [900]).apply(matrix))
    assert found.common == pytest.approx(0.4 / np.sqrt(1 + 0.4**2), rel=1e-3)
    assert warnings_of({"a": found}) == []


def test_warnings_name_the_remedy_once_for_all():
    wide = np.random.default_rng(0).choice([-1.0, 1.0], (50, 400))
    figures = {"a": figures_of(draw() + 20), "b": figures_of(wide), "c": figures_of(draw() + 90)}
    common, ratio = warnings_of(figures)
    assert common.startswith("a, c: up to 100% of a row's length is common")
    assert "condition=default" in common
    assert ratio.startswith("b: row ratio up to 20.0, above 12")
    assert "probe=judge" in ratio


def test_rows_of_zeros_and_profiles_all_alike_have_figures():
    assert figures_of(np.zeros((4, 3))) == Figures(1.0, 0.0, 0.0)
    assert figures_of(np.full((4, 3), 2.0)) == Figures(1.0, 0.0, pytest.approx(np.sqrt(3)))
    assert np.isfinite(figures_of(np.eye(4)[:, :2]).row_ratio)
