"""docs/serving.md: its commands are commands of the project, with settings that they have."""

import re
import shlex

from omegaconf import OmegaConf

from ubp.cli.config import composed
from ubp.data.paths import CONFIGS, REPOSITORY

PAGE = (REPOSITORY / "docs/serving.md").read_text()
COMMANDS = re.findall(r"^python scripts/(\w+)\.py (.*)$", PAGE, flags=re.MULTILINE)


def test_every_command_composes_and_lacks_nothing():
    assert {name for name, _ in COMMANDS} == {"neighbours", "explain", "export"}
    for name, words in COMMANDS:
        config = composed(CONFIGS / "scripts", name, shlex.split(words))
        assert not OmegaConf.missing_keys(config)


def test_every_setting_that_the_page_names_is_one():
    configs = [composed(CONFIGS / "scripts", name) for name in ("neighbours", "explain", "export")]
    named = set(re.findall(r"`((?:build|left_out|readers)\.\w+)", PAGE))
    assert named
    for setting in named:
        assert any(OmegaConf.select(config, setting) is not None for config in configs), setting
