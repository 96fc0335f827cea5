"""docs/nightly.md: its commands run as they stand there, and what it quotes of them is what they say."""

import pytest

from tests.pages import Page
from ubp.data.paths import CONFIGS

PAGE = Page("nightly.md")


def test_the_quoted_limits_are_the_configs():
    (text,) = PAGE.quoted("yaml")
    assert text in (CONFIGS / "scripts/nightly.yaml").read_text()


@pytest.mark.full
def test_the_pages_commands_lead_through_two_nights(tmp_path):
    nights = [said for line, said in PAGE.run(tmp_path, "clients=60") if "nightly.py" in line]
    assert len(nights) >= 2
    assert all(map(PAGE.shows_end_of, nights))
    newest = PAGE.names_of_python(tmp_path)["newest"]
    assert newest["client_id"].is_unique().all()
    assert newest["original"].str.starts_with("DE").all()
    assert newest["day"].n_unique() == 2
