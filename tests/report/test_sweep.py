from __future__ import annotations

import math
from dataclasses import replace

import matplotlib
import numpy as np
import pytest

from tomfisher.report import plot_accuracy, plot_perplexity
from tomfisher.report.style import STATES

N = 40
KAPPAS = (1e-5, 1e-4, 1e-3)


def line(axis, color, marker):
    (found,) = [x for x in axis.get_lines() if x.get_color() == color and x.get_marker() == marker]
    return found


def values(axis, state):
    look = STATES[state]
    return line(axis, look.color, look.marker).get_xydata()


def test_accuracies_stand_at_their_kappas(results):
    _, axis = plot_accuracy(results)
    assert values(axis, "task-control").tolist() == [
        list(x) for x in zip(KAPPAS, (34 / N, 20 / N, 8 / N), strict=True)
    ]
    assert values(axis, "control-only")[:, 1].tolist() == [36 / N, 35 / N, 33 / N]
    assert values(axis, "random")[:, 1] == pytest.approx([35.5 / N, 35.5 / N, 36 / N])
    assert axis.get_xscale() == "log" and axis.get_ylim()[0] < 0 < 1 < axis.get_ylim()[1]


def test_bars_are_the_wilson_intervals(results):
    _, axis = plot_accuracy(results)
    found = {}
    for container in axis.containers:
        (bars,) = container.lines[2]
        found[container.lines[0].get_color()] = [tuple(segment[:, 1]) for segment in bars.get_segments()]
    for mask in ("task-control", "control-only"):
        wanted = [row.ci95 for row in results.select(mask=mask, condition="false-belief")]
        assert np.allclose(found[STATES[mask].color], wanted)


def test_the_random_band_goes_from_the_least_to_the_most(results):
    _, axis = plot_accuracy(results)
    (bars,) = [c for c in axis.collections if c.get_alpha() == 0.45]
    (band,) = [c for c in axis.collections if c.get_alpha() == 0.3]
    lows, highs = (35 / N, 34 / N, 36 / N), (36 / N, 37 / N, 36 / N)
    assert [tuple(s[:, 1]) for s in bars.get_segments()] == list(zip(lows, highs, strict=True))
    corners = {(x, round(y, 9)) for x, y in band.get_paths()[0].vertices}
    assert {
        (x, round(y, 9)) for x, y in [*zip(KAPPAS, lows, strict=True), *zip(KAPPAS, highs, strict=True)]
    } <= corners


@pytest.mark.parametrize("plot", [plot_accuracy, plot_perplexity])
def test_random_masks_stand_beside_the_others_and_on_top(results, plot):
    _, axis = plot(results)
    beside = values(axis, "random")[:, 0] / np.array(KAPPAS)
    assert beside == pytest.approx(np.full(3, beside[0])) and 1.02 < beside[0] < 1.2
    shown = {
        mask: line(axis, STATES[mask].color, STATES[mask].marker) for mask in STATES if mask != "baseline"
    }
    drawn = list(axis.get_children())
    top = shown.pop("random")
    for other in shown.values():
        assert (top.get_zorder(), drawn.index(top)) > (other.get_zorder(), drawn.index(other))
    low, high = axis.get_xlim()
    assert low < top.get_xdata()[0] and top.get_xdata()[-1] < high


def test_the_untouched_model_and_chance_are_lines_across(results):
    _, axis = plot_accuracy(results)
    level = {x.get_label(): x.get_ydata()[0] for x in axis.get_lines() if len(set(x.get_ydata())) == 1}
    assert level["untouched, 95 % interval"] == 36 / N and level["chance"] == 0.5
    shade = axis.patches[0]
    low, high = results.baseline("false-belief").ci95
    assert (shade.get_y(), shade.get_y() + shade.get_height()) == pytest.approx((low, high))


def test_another_condition_can_be_asked_for_and_an_unknown_one_is_refused(results):
    _, axis = plot_accuracy(results, "false-belief/reality")
    assert set(values(axis, "task-control")[:, 1]) == {38 / N}
    assert "false-belief/reality" in axis.get_ylabel()
    with pytest.raises(ValueError, match=r"no condition 'irony'. Conditions: false-belief, .*all"):
        plot_accuracy(results, "irony")


def test_perplexities_and_the_limit(results):
    _, axis = plot_perplexity(results)
    assert values(axis, "task-control")[:, 1].tolist() == [10.1, 10.2, 10.4]
    assert values(axis, "control-only")[:, 1].tolist() == [12.0, 30.0, 90.0]
    level = {x.get_label(): x.get_ydata()[0] for x in axis.get_lines() if len(set(x.get_ydata())) == 1}
    assert level["untouched"] == 10.0 and level["+5%: the limit"] == pytest.approx(10.5)


def test_the_perplexity_axis_is_logarithmic_only_where_it_more_than_trebles(results):
    calm = tuple(row for row in results.rows if row.mask != "control-only")
    assert plot_perplexity(results)[1].get_yscale() == "log"
    assert plot_perplexity(replace(results, rows=calm))[1].get_yscale() == "linear"


def test_one_kappa_and_missing_controls_are_no_obstacle(results):
    untouched = results.select(mask="none")
    few = (*untouched, *results.select(kappa=1e-3, mask="task-control"))
    for plot in (plot_accuracy, plot_perplexity):
        _, axis = plot(replace(results, rows=few))
        assert len(values(axis, "task-control")) == 1
        low, high = axis.get_xlim()
        assert low < 1e-3 < high
        labels = [text.get_text() for text in axis.figure.legends[0].get_texts()]
        assert not any("random" in label or "control only" in label for label in labels)
    _, axis = plot_accuracy(replace(results, rows=untouched))
    assert [x.get_label() for x in axis.get_lines()] == ["untouched, 95 % interval", "chance"]


def test_ticks_of_near_kappas_do_not_run_into_each_other(results):
    kappas = [1e-3 * 1.2**i for i in range(8)]
    masked = results.select(kappa=1e-5, mask="task-control")
    points = [replace(row, kappa=kappa) for kappa in (*kappas[:7], 1.0) for row in masked]
    _, axis = plot_accuracy(replace(results, rows=(*results.select(mask="none"), *points)))
    low, high = axis.get_xlim()
    places = [math.log(tick / low) / math.log(high / low) for tick in axis.get_xticks()]
    assert len(places) < 8 and min(np.diff(places)) > 0.07


def test_plotting_leaves_the_settings_of_matplotlib_alone(results):
    before = dict(matplotlib.rcParams)
    plot_accuracy(results)
    assert dict(matplotlib.rcParams) == before
    from matplotlib import _pylab_helpers

    assert not _pylab_helpers.Gcf.figs
