from __future__ import annotations

from tomfisher.results import analysis_tables


def test_a_p_too_small_for_a_float_is_no_zero():
    table = analysis_tables._table([{"p": 0.0, "p_corrected": 0.0, "share": 0.0}])
    assert table.splitlines()[-1].split() == ["<", "1e-300", "<", "1e-300", "0"]
