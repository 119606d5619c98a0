import json

import pytest

from tomfisher.evaluate import GroupScore, Record, Scores, cluster_interval, compare, wilson_interval


def record(cell, kind, outcomes, condition="contents/open", logprobs=None):
    group = condition if kind == "belief" else f"{condition}/reality"
    correct = sum(outcomes) / len(outcomes)
    return Record(
        f"{cell}/{kind}", group, condition, cell, kind, correct, "word", logprobs, None, tuple(outcomes)
    )


def test_by_group_and_all():
    scores = Scores(
        (
            record("a", "belief", [1.0]),
            record("a", "reality", [0.0]),
            record("b", "belief", [0.0]),
            record("c", "belief", [1.0], "transfer/present"),
        )
    )
    groups = scores.by_group()
    assert list(groups) == ["contents/open", "contents/open/reality", "transfer/present", "all"]
    assert groups["contents/open"] == GroupScore(2, 0.5, wilson_interval(1, 2), 2)
    whole = cluster_interval([1.0, 0.0, 0.0, 1.0], "aabc")
    assert groups["all"] == GroupScore(4, 0.5, whole, 3)
    assert groups["all"].to_dict() == {"n": 4, "n_scenes": 3, "accuracy": 0.5, "ci95": list(whole)}


def test_a_cell_needs_both_questions_in_the_same_repetition():
    scores = Scores(
        (
            record("a", "belief", [1.0, 0.0, 1.0, 0.0]),
            record("a", "reality", [0.0, 1.0, 1.0, 0.0]),
            record("b", "belief", [1.0, 1.0, 1.0, 1.0]),
            record("b", "reality", [1.0, 1.0, 1.0, 0.0]),
            record("c", "belief", [1.0] * 4, "transfer/present"),
        )
    )
    cells = scores.cells()
    assert list(cells) == ["contents/open", "transfer/present", "all"]
    assert (cells["contents/open"].n, cells["contents/open"].accuracy) == (2, (0.25 + 0.75) / 2)
    assert (cells["all"].n, cells["all"].accuracy) == (3, pytest.approx(2 / 3))


def test_scores_of_versions_without_packing_are_read():
    scores = Scores((record("a", "belief", [1.0]),), shared_prefix=True, packed=True)
    data = scores.to_dict()
    assert Scores.from_dict(data) == scores
    del data["packed"]
    assert Scores.from_dict(data).packed is False


def test_json_round_trip():
    scores = Scores(
        (record("a", "belief", [0.5], logprobs=(-1.0, -2.5)), record("a", "reality", [1.0, 0.0])),
        "choice",
        True,
    )
    assert Scores.from_dict(json.loads(json.dumps(scores.to_dict()))) == scores


def test_compare_pairs_by_id_per_group():
    def scores(right, wrong):
        return [record(f"r{i}", "belief", [1.0]) for i in right] + [
            record(f"r{i}", "belief", [0.0]) for i in wrong
        ]

    before = Scores((*scores(range(8), []), record("x", "belief", [0.0], "transfer/present")))
    after = Scores((record("x", "belief", [1.0], "transfer/present"), *reversed(scores([0, 1], range(2, 8)))))
    assert compare(before, after) == {
        "contents/open": pytest.approx(2 / 2**6),
        "transfer/present": 1.0,
        "all": pytest.approx(2 * (1 + 7) / 2**7),
    }
    assert set(compare(before, before).values()) == {1.0}


def test_both_directions_and_all_conditions_of_a_scene_count_as_one():
    def scores(right):
        return Scores(
            tuple(
                record(f"s{i}/{condition}/{direction}", "belief", [right], f"contents/{condition}")
                for i in range(6)
                for condition in ("open", "informed")
                for direction in ("as-written", "swapped")
            )
        )

    groups = scores(1.0).by_group()
    assert (groups["contents/open"].n, groups["contents/open"].n_clusters) == (12, 6)
    assert (groups["all"].n, groups["all"].n_clusters) == (24, 6)
    assert groups["all"].ci95 == pytest.approx(wilson_interval(6, 6))
    assert scores(1.0).cells()["all"].n_clusters == 6
    assert compare(scores(1.0), scores(0.0)) == {
        "contents/open": 2 / 2**6, "contents/informed": 2 / 2**6, "all": 2 / 2**6
    }  # fmt: skip


def test_compare_refuses_other_stories():
    with pytest.raises(ValueError, match=r"1 ids .*'b/belief'"):
        compare(
            Scores((record("a", "belief", [1.0]),)),
            Scores((record("a", "belief", [1.0]), record("b", "belief", [1.0]))),
        )
