"""Ranks: how work is split, what they tell one another, and sums that have the same bits each time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import run_ranks
from torch.testing._internal.distributed.fake_pg import FakeStore

import tomfisher
from tiny_models import smallest_llama
from tomfisher.runtime import ranks
from tomfisher.runtime.board import ENVIRONMENT, silence
from tomfisher.runtime.ordered_sum import place_of


@pytest.mark.parametrize(("weights", "size"), [([5, 9, 30, 12, 7], 2), ([1] * 10, 3), ([4, 4], 3), ([], 2)])
def test_shares_hold_everything_once_and_differ_by_no_more_than_one_thing(
    weights: list[int], size: int
) -> None:
    parts = ranks.shares(weights, size)
    assert len(parts) == size
    assert sorted(i for part in parts for i in part) == list(range(len(weights)))
    assert all(part == sorted(part) for part in parts)
    loads = [sum(weights[i] for i in part) for part in parts]
    assert max(loads) - min(loads) <= max(weights, default=0)


def test_a_process_by_itself_is_a_team_of_one() -> None:
    team = ranks.current()
    tensor = torch.ones(3)
    with team.call("anything"):
        team.agree("nothing", {"a": object()})  # compared with nobody, so that it need not be JSON
        team.sum_([tensor])
        assert team.exchange("here", 7) == [7]
        assert team.first("this", lambda: 8) == 8
        assert team.merged("these", 2, {0: "a", 1: "b"}) == ["a", "b"]
    assert (team.rank, team.size, team.is_first) == (0, 1, True)
    assert tensor.tolist() == [1, 1, 1]


def test_one_of_several_processes_without_a_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    ids = torch.arange(4)
    sample = tomfisher.Sample(ids, ids)
    with pytest.raises(ValueError, match="rank 1 of 2, but no process group is initialised"):
        tomfisher.fisher_diagonal(smallest_llama(), [sample])
    with ranks.alone():
        assert tomfisher.fisher_diagonal(smallest_llama(), [sample], progress=False).num_samples == 1


def test_a_launcher_that_names_no_master_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="MASTER_ADDR and MASTER_PORT not set"), ranks.started():
        pass


@pytest.mark.parametrize("given", ["soon", "1", "nan", ""])
def test_an_unusable_timeout_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, given)
    with pytest.raises(ValueError, match=ENVIRONMENT):
        silence()


def test_a_backend_that_cannot_add_is_refused_by_name() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with pytest.raises(ValueError, match="backend 'fake'"):
            place_of(torch.device("cpu"))
    finally:
        dist.destroy_process_group()


EXCHANGES = """
from tomfisher.runtime import board, ordered_sum
from tomfisher.runtime.board import RankError
from tomfisher.runtime.sharded import rows_of

team = ranks.current()
told(rank=team.rank, told=team.exchange("rank", team.rank * 1.1))
told(first=team.first("one", os.getpid), pid=os.getpid())
told(merged=team.merged("parts", 7, {i: f"of {rank}" for i in range(7) if i % size == rank}))

# sums: entries of very different sizes, so that another order gives other bits
ordered_sum.PIECE = 10
shapes = [(), (0,), (1,), (3, 5), (40,), (2, 2), (10,)]
def own(rank):
    generator = torch.Generator().manual_seed(rank)
    sizes = [10 ** torch.randint(-6, 6, shape, generator=generator).float() for shape in shapes]
    return [torch.randn(size.shape, generator=generator) * size for size in sizes]
expected = own(0)
for other in range(1, size):
    expected = [a + b for a, b in zip(expected, own(other))]
backwards = own(size - 1)
for other in reversed(range(size - 1)):
    backwards = [a + b for a, b in zip(backwards, own(other))]
found = own(rank)
team.sum_(found)
told(
    exact=[torch.equal(a, b) for a, b in zip(found, expected)],
    backwards=all(torch.equal(a, b) for a, b in zip(found, backwards)),
)

# by rows: of the same bits, uneven, fewer rows than ranks, none
rows_match, gathered = [], []
for shape in (s for s in shapes if s):
    at = shapes.index(shape)
    mine = rows_of(shape[0], size, rank)
    part = team.sum_rows(own(rank)[at])
    rows_match.append(torch.equal(part, expected[at][mine.start : mine.stop]))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        whole = expected[at].to(dtype)
        into = torch.full_like(whole, -1)
        team.gather_rows(whole[mine.start : mine.stop], into)
        gathered.append(torch.equal(into, whole))
told(rows_match=rows_match, gathered=gathered)

def differing():
    with team.call("differing"):
        team.agree("the settings", {"same": 1, "nested": {"seed": 5 if rank == 2 else 4}})
def at_odds():
    with team.call("this" if rank else "that"):
        pass
def failing():
    with team.call("failing"):
        if rank == 1:
            raise FloatingPointError("the loss of sample 7 is nan")
        team.exchange("further")
def layouts():
    with team.call("layouts"):
        team.sum_([torch.ones(3 if rank else 4)])
told(differing=refusal(differing), at_odds=refusal(at_odds), failing=refusal(failing), layouts=refusal(layouts))
with team.call("afterwards"):
    told(afterwards=team.exchange("still", rank))

with ranks.alone():
    told(alone=ranks.current().size)
board.LATE = 1.5
if rank != 1:
    told(late=refusal(lambda: team.call("a call that rank 1 does not make").__enter__()))
"""


@pytest.mark.slow
def test_what_three_ranks_tell_one_another(tmp_path: Path) -> None:
    ended = [process.facts for process in run_ranks(tmp_path, EXCHANGES, 3)]
    for rank, facts in enumerate(ended):
        assert facts["rank"] == rank
        assert facts["told"] == [0, 1.1, 2.2]
        assert facts["first"] == ended[0]["pid"]
        assert facts["merged"] == [f"of {i % 3}" for i in range(7)]
        assert facts["exact"] == [True] * 7
        assert facts["rows_match"] == [True] * 6
        assert facts["gathered"] == [True] * 18
        assert not facts["backwards"]  # or the order could not be told
        assert "Rank 2 differs from rank 0 in the settings" in facts["differing"]
        assert "nested.seed: 4 on rank 0, 5 on rank 2" in facts["differing"]
        assert facts["differing"].startswith("ValueError")
        assert "Rank 1 is at 'this' where rank 0 is at 'that'" in facts["at_odds"]
        assert "Rank 1 differs from rank 0 in the tensors to add" in facts["layouts"]
        assert facts["afterwards"] == [0, 1, 2]
        assert facts["alone"] == 1
    assert ended[1]["failing"] == "FloatingPointError: the loss of sample 7 is nan"
    for rank in (0, 2):
        assert "Rank 1 has ended" in ended[rank]["failing"]
        assert "the loss of sample 7 is nan" in ended[rank]["failing"]
        assert "Rank 1 did not call a call that rank 1 does not make within 1.5 s" in ended[rank]["late"]
