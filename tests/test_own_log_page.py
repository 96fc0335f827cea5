"""docs/own-log.md: what it quotes is what is there, and its commands run as they stand there."""

import pytest

from scripts.make_example_log import Wanted, bank
from tests.pages import Page
from ubp.data.paths import CONFIGS

PAGE = Page("own-log.md")


def test_the_quoted_schema_is_the_projects():
    text, _ = PAGE.quoted("yaml")  # the second is an example of a type of one's own
    assert text in (CONFIGS / "schema/bank.yaml").read_text()


def test_the_quoted_columns_are_the_examples():
    (rows,) = bank(Wanted("bank", "", 5, "2025-01-01", 40), seed=0).values()
    assert f"\n{','.join(rows.columns)}\n" in PAGE.text


@pytest.mark.full
def test_the_pages_commands_lead_from_a_csv_to_scores_and_back_to_ones_own_ids(tmp_path):
    said = [said for _, said in PAGE.run(tmp_path, "clients=60 days=150")]
    assert len(said) >= 6
    assert all(map(PAGE.shows_end_of, said))
    profiles = PAGE.names_of_python(tmp_path)["profiles"]
    assert profiles["original"].str.starts_with("DE").all()
    assert len(profiles) > 50
