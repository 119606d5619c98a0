from __future__ import annotations

import pytest

from tomfisher.cli.plan import format_study
from tomfisher.studies import Config, Experiment
from tomfisher.studies.plan import plan_study


def test_too_few_questions_are_said_before_the_work(tiny_settings, capsys, monkeypatch):
    tiny_settings |= {"task_store": "t", "control_store": "c"}
    few = {**tiny_settings, "limit": 4}
    monkeypatch.setattr(Experiment, "_measure", lambda *args: pytest.exit("begun"))
    with pytest.raises(pytest.exit.Exception):
        Experiment(few).run()
    assert "not enough questions to find anything: " in capsys.readouterr().err
    monkeypatch.setattr("tomfisher.studies.plan._seconds_per_point", lambda *args: 1.0)
    assert "not enough questions" in format_study(plan_study(Config.from_dict(few)))
    assert "not enough questions" not in format_study(plan_study(Config.from_dict(tiny_settings)))
