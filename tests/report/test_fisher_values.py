from __future__ import annotations

import re

import numpy as np
import pytest

from tomfisher.report import load, plot_fisher_values
from tomfisher.report.fisher_values import entries, histogram
from tomfisher.report.pictures import draw
from tomfisher.report.style import CONTROL, TASK, to_svg
from tomfisher.report.tables import values_table

KAPPAS = (1e-5, 1e-4, 1e-3)
SUMMED = [5, 0, 1000, 740, 100, 90, 10]  # from 2**-10 on, both tensors together


def steps(axis, color):
    (found,) = [patch for patch in axis.patches if patch.get_edgecolor()[:3] == rgb(color)]
    return found.get_data()


def rgb(color):
    return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))


def test_histograms_of_the_tensors_are_added_where_they_belong(values):
    first, counts = histogram(values["task"])
    assert first == -10 and counts.tolist() == SUMMED
    assert entries(values["task"]) == 2000 and entries(values["task"], "zeros") == 55


@pytest.mark.parametrize(("which", "color", "first"), [("task", TASK, -10), ("control", CONTROL, -8)])
def test_counts_stand_over_their_powers_of_two(values, which, color, first):
    _, (above, _) = plot_fisher_values(values)
    drawn, edges, _ = steps(above, color)
    assert drawn.tolist() == SUMMED
    assert edges.tolist() == [2.0**exponent for exponent in range(first, first + len(SUMMED) + 1)]
    assert above.get_xscale() == above.get_yscale() == "log"
    assert [text.get_text() for text in above.figure.legends[0].get_texts()] == ["task", "control"]


@pytest.mark.parametrize(("color", "first"), [(TASK, 5), (CONTROL, 3)])
def test_thresholds_of_every_kappa_are_marked(values, color, first):
    _, (above, below) = plot_fisher_values(values)
    assert [text.get_text() for text in below.get_yticklabels()] == [f"{kappa:g}" for kappa in KAPPAS]
    (medians,) = [line for line in below.get_lines() if line.get_color() == color]
    assert medians.get_xdata() == pytest.approx([1.25 * 2.0**-i for i in range(first, first + 3)])
    assert np.round(medians.get_ydata()).tolist() == [0, 1, 2]
    (ranges,) = [c for c in below.collections if tuple(c.get_color()[0][:3]) == rgb(color)]
    ends = [tuple(segment[:, 0]) for segment in ranges.get_segments()]
    assert ends == [(2.0**-i, 1.75 * 2.0**-i) for i in range(first, first + 3)]
    assert above.get_shared_x_axes().joined(above, below)


def test_no_letter_is_smaller_than_the_ticks(values):
    svg = to_svg(plot_fisher_values(values)[0])
    sizes = [float(size) for size in re.findall(r"font(?:-size)?:[^;\"]*?([0-9.]+)px", svg)]
    assert len(sizes) > 10 and min(sizes) >= 9
    assert "1e-2" in svg and "1e2" in svg


def test_a_kappa_that_selects_nothing_leaves_a_gap(values):
    values["task"]["thresholds"][0] |= {"least": None, "median": None, "most": None}
    values["task"]["thresholds"][1]["least"] = 0.0
    _, (_, below) = plot_fisher_values(values)
    (medians,) = [line for line in below.get_lines() if line.get_color() == TASK]
    assert np.round(medians.get_ydata()).tolist() == [1, 2]
    (ranges,) = [c for c in below.collections if tuple(c.get_color()[0][:3]) == rgb(TASK)]
    assert all(segment[:, 0].min() > 0 for segment in ranges.get_segments())
    assert values_table(values).rows[0][6] == "–"


def test_values_that_are_all_zero_cannot_be_drawn_and_that_is_said(values, make_run):
    for which in values:
        for tensor in values[which]["tensors"].values():
            tensor |= {"zeros": tensor["numel"], "histogram": {"first": 0, "counts": []}}
    with pytest.raises(ValueError, match="No Fisher value is positive"):
        plot_fisher_values(values)
    pictures, missing = draw(load(make_run(**{"fisher-values": values})))
    assert [m.what for m in missing] == ["Figure fisher-values"]
    assert [p.name for p in pictures] == ["accuracy", "perplexity"]


def test_the_table_and_the_words_have_the_numbers(values, make_run):
    table = values_table(values)
    assert table.columns[-3:] == ["κ = 1e-05", "κ = 0.0001", "κ = 0.001"]
    median = [f"{1.25 * 2.0**-i:.3g}" for i in range(5, 8)]
    assert table.rows[0] == ["task", "30", "2,000", "55", "0", f"{1.5 * 2.0**-4:.3g}", *median]
    assert table.rows[1][:4] == ["control", "40", "2,000", "55"]
    (picture,) = [p for p in draw(load(make_run()))[0] if p.name == "fisher-values"]
    assert (
        "The 2,000 task values: the fullest bin is 0.0039 to twice that (1,000), and 55 are 0."
        in picture.says
    )
