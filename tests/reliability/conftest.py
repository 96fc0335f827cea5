"""Counts of what the tests of reliability tried, printed when all have run."""

from collections import Counter

import pytest

_COUNTS: pytest.StashKey[Counter[str]] = pytest.StashKey()


@pytest.fixture
def counts(request: pytest.FixtureRequest) -> Counter[str]:
    """What was tried, by what it is: ``counts["kills of stat_features"] += 1``."""
    return request.config.stash.setdefault(_COUNTS, Counter())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the counts."""
    counted = config.stash.get(_COUNTS, Counter())
    if not counted:
        return
    terminalreporter.section("what was tried")
    for what, count in sorted(counted.items()):
        terminalreporter.write_line(f"{count:>7,} {what}")
