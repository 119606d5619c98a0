"""`perturb` of weights that FSDP2 spreads over ranks: what one process writes, and back to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import run_ranks

pytestmark = pytest.mark.slow

PERTURBED = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from tomfisher.masks import SparseMask
from tomfisher.runtime.sharded import local_rows, rows_of

dtype = getattr(torch, os.environ["DTYPE"])
def made(spread, **settings):
    model = random_model("llama-tied", 0.05).to(dtype)
    for layer in model.model.layers if spread else []:
        fully_shard(layer, **settings)
    return fully_shard(model, **settings) if spread else model
def mine(tensor):
    rows = rows_of(len(tensor), size, rank)
    return tensor[rows.start : rows.stop]
def agrees(model, whole):  # the rows of this rank are those of a model in one process
    named = dict(whole.named_parameters())
    return [n for n, p in model.named_parameters() if not torch.equal(p.to_local(), mine(named[n]))]

def held(name):
    return local_rows(dict(model.named_parameters())[name])

model, whole = made(True), made(False)
shapes = {name: tuple(p.shape) for name, p in whole.named_parameters() if p.ndim == 2}
generator = torch.Generator().manual_seed(0)
def some(shape, k, start=0):
    return (torch.randperm(shape[0] * shape[1] - start, generator=generator)[:k] + start).sort().values
indices = {name: some(shape, 40) for name, shape in shapes.items()}
first = "model.layers.0.mlp.down_proj.weight"
indices[first] = torch.arange(5)  # in the rows of rank 0 alone
mask = SparseMask(indices, shapes)
ids = torch.arange(3, 12)[None]
for fill, compat in (("mean", None), ("mean", "authors"), ("noise", None), ("scale:0.5", None), (0.25, None)):
    for round in range(2):
        with tomfisher.perturb(model, mask, fill, seed=4, compat=compat) as p, \\
                tomfisher.perturb(whole, mask, fill, seed=4, compat=compat) as q, torch.no_grad():
            differing = agrees(model, whole)
            logits = torch.equal(model(ids).logits, whole(ids).logits)
            counted = sum(team_counts) if (team_counts := ranks.current().exchange("n", p.nnz)) else 0
        told(**{f"{fill} {compat} {round}": {
            "within": differing == [], "forward": logits, "undone": agrees(model, whole) == [],
            "counted": counted == q.nnz, "nothing": not p.applied,
        }})
with tomfisher.perturb(model, mask), tomfisher.perturb(model, mask, "zero"):
    pass
told(nested=agrees(model, whole) == [])

p = tomfisher.perturb(model, mask).apply()
if rank == 0:  # somebody else changes an entry of this rank
    held(first)[0, 0] = 7
message = refusal(p.undo)
if rank == 0:
    held(first)[0, 0] = dict(whole.named_parameters())[first][0, 0].item()
told(changed=message, after=agrees(model, whole) == [])

moved = SparseMask({**mask, first: torch.arange(5) + (rank == 1)}, shapes)
told(moved=refusal(tomfisher.perturb(model, moved).apply), unmoved=agrees(model, whole) == [])
told(kinds=refusal(tomfisher.perturb(model, mask, 0.5 + rank / 4).apply))

p = tomfisher.perturb(model, mask).apply()
told(twice=refusal(p.apply), stays=p.applied, within=agrees(model, whole) != [])
p.undo()
told(undone=agrees(model, whole) == [])

other, twin = made(True), made(False)
q = tomfisher.perturb(other, mask)  # before the parameters are replaced
doubled = {name: (2 * tensor).detach() for name, tensor in other.state_dict().items()}
other.load_state_dict(doubled, assign=True)
other.lm_head.weight = other.model.embed_tokens.weight
with torch.no_grad():
    for parameter in twin.parameters():
        parameter.mul_(2)
with q, tomfisher.perturb(twin, mask):
    told(replaced=agrees(other, twin) == [])
head = local_rows(other.lm_head.weight)
head.fill_(3e38)
head[:, ::2] = -3e38
told(overflow=refusal(tomfisher.perturb(other, mask, "noise").apply))
state, plain = model.state_dict(), dict(whole.named_parameters(remove_duplicate=False))
told(tied=len({id(state[n]) for n in ("lm_head.weight", "model.embed_tokens.weight")}))
both = {n: some(plain[n].shape, 30) for n in ("lm_head.weight", "model.embed_tokens.weight")}
both = SparseMask(both, {n: plain[n].shape for n in both})
with tomfisher.perturb(state, both, "noise"), tomfisher.perturb(plain, both, "noise"):
    told(together=agrees(model, whole) == [])
told(apart=agrees(model, whole) == [])

full = SparseMask({first: torch.arange(32 * 48)}, {first: (32, 48)})
told(full=refusal(tomfisher.perturb(model, full).apply), still=agrees(model, whole) == [])
if rank == size - 1:
    with torch.no_grad():
        held(first)[-1, -1] = float("nan")
told(nan=refusal(tomfisher.perturb(model, mask).apply))
names = [n for n in shapes if n != first]
rest = SparseMask({n: mask[n] for n in names}, {n: shapes[n] for n in names})
with tomfisher.perturb(model, rest):
    pass
told(rest=[n for n in agrees(model, whole) if n != first] == [])
with ranks.alone():
    told(alone=refusal(tomfisher.perturb, model, mask))
two = made(True, mesh=init_device_mesh("cpu", (size, 1), mesh_dim_names=("replicate", "shard")))
told(hsdp=refusal(tomfisher.perturb, two, mask))
"""


@pytest.mark.parametrize(("size", "dtype"), [(2, "bfloat16"), (3, "float32")])
def test_every_rank_writes_its_rows_of_what_one_process_writes(tmp_path: Path, size: int, dtype: str) -> None:
    for rank, process in enumerate(run_ranks(tmp_path, PERTURBED, size, {"DTYPE": dtype})):
        facts = process.facts
        rounds = {key: value for key, value in facts.items() if isinstance(value, dict)}
        assert len(rounds) == 10
        assert {key: value for key, value in rounds.items() if not all(value.values())} == {}
        assert facts["nested"]
        if rank == 0:
            assert "somebody else changed 1 of its entries" in facts["changed"]
        else:
            assert facts["changed"] is None
        assert facts["after"]
        assert "Rank 1 differs from rank 0 in what is perturbed" in facts["moved"]
        assert facts["unmoved"]
        assert "value" in facts["kinds"]
        assert "cannot be applied twice" in facts["twice"]
        assert facts["stays"] and facts["within"] and facts["undone"]
        assert facts["replaced"] and facts["together"] and facts["apart"]
        assert facts["tied"] == 2
        assert "fill noise gives values in model.embed_tokens.weight" in facts["overflow"]
        assert "is masked entirely" in facts["full"]
        assert facts["still"]
        assert "down_proj.weight holds NaN or infinity" in facts["nan"]
        assert facts["rest"]
        assert "this one works alone" in facts["alone"]
        assert "a mesh of 2 dimensions (HSDP" in facts["hsdp"]
