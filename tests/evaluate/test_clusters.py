"""Questions on one scene are not independent: exact sign flips against brute force, intervals against coverage."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import scipy.stats

from tomfisher import tasks
from tomfisher.evaluate import cluster_interval, sign_flip_test, wilson_interval
from tomfisher.tasks.story import scene_of


def by_brute_force(before, after, scenes, unit=60):
    changes = Counter()
    for b, a, scene in zip(before, after, scenes, strict=True):
        changes[scene] += round(a * unit) - round(b * unit)
    observed = abs(sum(changes.values()))
    sums = [
        sum(sign * change for sign, change in zip(signs, changes.values(), strict=True))
        for signs in itertools.product((-1, 1), repeat=len(changes))
    ]
    return sum(abs(total) >= observed for total in sums) / len(sums)


def test_pairs_that_change_together_count_once():
    scenes = [scene for scene in range(10) for _ in range(2)]
    assert sign_flip_test([1] * 20, [0] * 20, scenes) == 2 / 2**10
    assert sign_flip_test([1] * 20, [0] * 20, range(20)) == 2 / 2**20


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("values", [(0.0, 1.0), (0.0, 0.5, 1.0), (0.0, 0.2, 1 / 3, 0.75, 1.0)])
def test_sign_flips_equal_brute_force(values, seed):
    rng = random.Random(seed)
    scenes = [rng.randrange(rng.randint(1, 11)) for _ in range(rng.randint(1, 30))]
    before, after = ([rng.choice(values) for _ in scenes] for _ in range(2))
    expected = by_brute_force(before, after, scenes)
    assert sign_flip_test(before, after, scenes) == expected
    assert sign_flip_test(after, before, scenes) == expected


@pytest.mark.parametrize("seed", range(20))
def test_one_question_per_scene_is_mcnemar(seed):
    rng = random.Random(seed)
    n = rng.choice([1, 2, 9, 40, 640])
    before, after = ([float(rng.random() < rate) for _ in range(n)] for rate in (0.9, 0.7 + 0.2 * (seed % 2)))
    losses, gains = (
        sum(a > b for a, b in zip(*pair, strict=True)) for pair in ((before, after), (after, before))
    )
    expected = scipy.stats.binomtest(losses, losses + gains).pvalue if losses + gains else 1.0
    assert sign_flip_test(before, after, range(n)) == pytest.approx(expected, rel=1e-12)


def test_thousands_of_scenes_equal_a_convolution_in_floats():
    rng = random.Random(0)
    scenes = [scene for scene in range(2000) for _ in range(rng.randint(1, 4))]
    before, after = ([float(rng.random() < rate) for _ in scenes] for rate in (0.7, 0.675))
    changes = Counter()
    for b, a, scene in zip(before, after, scenes, strict=True):
        changes[scene] += int(a - b)
    reach = sum(map(abs, changes.values()))
    density = np.zeros(2 * reach + 1)
    density[reach] = 1
    for change in changes.values():
        density = (np.roll(density, change) + np.roll(density, -change)) / 2
    observed = abs(sum(changes.values()))
    expected = density[np.abs(np.arange(-reach, reach + 1)) >= observed].sum()
    assert 1e-4 < expected < 0.2
    assert sign_flip_test(before, after, scenes) == pytest.approx(expected, rel=1e-9)


def test_without_a_change_and_far_out():
    assert sign_flip_test([1, 0], [1, 0], "ab") == 1.0
    assert sign_flip_test([], [], []) == 1.0
    assert sign_flip_test([1, 0], [0, 1], "aa") == 1.0  # one lost, one gained on one scene
    assert 0 < sign_flip_test([1] * 3000, [0] * 3000, range(3000)) < 1e-300


def test_a_null_of_pairs_is_rejected_as_often_as_said():
    # 20 scenes whose two questions always change together: gains and losses are equally likely
    rng = np.random.default_rng(0)
    rejected = Counter()
    for _ in range(600):
        before, after = np.repeat(rng.integers(0, 2, (2, 20)), 2, axis=1).astype(float).tolist()
        rejected["scenes"] += sign_flip_test(before, after, [i // 2 for i in range(40)]) < 0.05
        rejected["questions"] += sign_flip_test(before, after, range(40)) < 0.05
    limit = 600 * 0.05 + 3 * (600 * 0.05 * 0.95) ** 0.5  # three standard deviations above the level
    assert rejected["scenes"] <= limit < rejected["questions"]


def test_sign_flips_refuse_unpaired():
    with pytest.raises(ValueError, match="2 and 3 answers and 2 clusters"):
        sign_flip_test([1, 0], [1, 0, 1], "ab")


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_one_question_per_scene_is_wilson(n):
    for k in range(n + 1):
        assert cluster_interval([1.0] * k + [0.0] * (n - k), range(n)) == wilson_interval(k, n)


@pytest.mark.parametrize(("right", "scenes", "each"), [(0.0, 20, 2), (1.0, 20, 2), (1.0, 5, 16), (1.0, 1, 3)])
def test_where_nothing_varies_a_scene_counts_once(right, scenes, each):
    got = cluster_interval([right] * (scenes * each), [i // each for i in range(scenes * each)])
    assert got == pytest.approx(wilson_interval(right * scenes, scenes), abs=1e-12)


def test_the_effective_number_by_hand():
    # means 1, 0, 1/2 and the made-up 0, 1: between 1/2, within 1/10, ICC 2/3, 6 / (1 + 2/3) = 3.6 questions
    got = cluster_interval([1, 1, 0, 0, 1, 0], "aabbcc")
    assert got == pytest.approx(wilson_interval(1.8, 3.6))
    # scenes of three and one: sum of squares 10, 10/4 - 1 = 3/2; sizes 3, 1, 2, 2 with means 2/3, 0, 0, 1:
    # between 4/9, within 1/6, typical size (8 - 18/8)/3 = 23/12, ICC 20/43, 4 / (1 + 30/43) = 172/73 questions
    got = cluster_interval([1, 1, 0, 0], "aaab")
    assert got == pytest.approx(wilson_interval(86 / 73, 172 / 73))


@pytest.mark.parametrize("correlation", [0.3, 0.9])
@pytest.mark.parametrize("p", [0.5, 0.9])
@pytest.mark.parametrize("each", [2, 8])
def test_intervals_cover_what_they_say(each, p, correlation):
    rng = np.random.default_rng(0)
    scenes, draws = 20, 1000
    spread = (1 - correlation) / correlation
    names = [i // each for i in range(scenes * each)]
    covered = Counter()
    for chances in rng.beta(p * spread, (1 - p) * spread, (draws, scenes)):
        values = (rng.random((scenes, each)) < chances[:, None]).astype(float).ravel().tolist()
        for name, (low, high) in (
            ("scenes", cluster_interval(values, names)),
            ("questions", wilson_interval(sum(values), len(values))),
        ):
            covered[name] += low <= p <= high
    # slack: three standard deviations of 1000 draws, 0.02, below 95 %
    assert covered["scenes"] >= 0.93 * draws
    if each == 8 or correlation == 0.9:
        assert covered["questions"] < 0.92 * draws


def test_intervals_refuse():
    with pytest.raises(ValueError, match="2 answers and 1 clusters"):
        cluster_interval([1, 0], "a")
    with pytest.raises(ValueError, match="0 answers"):
        cluster_interval([], [])


@pytest.mark.parametrize(
    ("task", "questions"), [("false-belief", 16), ("second-order", 30), ("testbed", 16), ("testbed2", 16)]
)
def test_all_conditions_and_both_directions_of_a_scene_belong_together(task, questions):
    stories = tasks.load(task, n=480)
    scenes = Counter(story.scene for story in stories)
    assert set(scenes.values()) == {questions}
    for scene in scenes:
        cast = [set(story.choices) for story in stories if story.scene == scene]
        assert all(choices == cast[0] for choices in cast)
    told = [
        story for story in stories if story.condition.endswith("/false-belief") and story.kind == "belief"
    ]
    assert set(Counter(story.scene for story in told).values()) == {2}


def test_cells_without_a_direction_are_scenes_of_their_own():
    assert scene_of("contents/eval/007/open/swapped") == scene_of("contents/eval/007/informed/as-written")
    assert scene_of("my_file/00012") == "my_file/00012"
    assert scene_of("a/b/c") == "a/b/c" and scene_of("7") == "7" and scene_of("x/swapped") == "x/swapped"
