from __future__ import annotations

from collections import Counter

import pytest

from tomfisher.cli.common import FIELDS
from tomfisher.cli.groups import GROUPS
from tomfisher.cli.main import build_parser

SHOWN = [f"{title}:" for title in GROUPS]


def help_of(command, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args([command, "--help"])
    return capsys.readouterr().out


def test_every_setting_of_a_study_stands_under_one_title():
    titles = Counter(flag for flags in GROUPS.values() for flag in flags)
    assert set(FIELDS) <= set(titles) and set(titles.values()) == {1}


def test_a_long_help_is_in_parts_each_flag_under_its_title(capsys):
    lines = help_of("run", capsys).splitlines()
    assert [line for line in lines if line in SHOWN] == [s for s in SHOWN if s != "training:"]
    part = lines[lines.index("perplexity:") + 1 : lines.index("analysis:")]
    assert [line.split()[0] for line in part if line.startswith("  --")] == [
        "--perplexity_tokens",
        "--perplexity_window",
        "--perplexity_stride",
    ]


@pytest.mark.parametrize("command", ["run", "sweep", "fisher", "evaluate", "finetune", "analyze", "plan"])
def test_few_flags_are_left_without_a_title(command, capsys):
    lines = help_of(command, capsys).splitlines()
    first = min(lines.index(title) for title in SHOWN if title in lines)
    assert sum(line.startswith("  -") for line in lines[lines.index("options:") : first]) <= 6
