"""The Fisher of a model that FSDP2 spreads over ranks: that of ranks which hold it whole, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import run_ranks

pytestmark = pytest.mark.slow

SHARDED = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from tomfisher.runtime.sharded import rows_of

options = {"tokens_per_batch": 60, "progress": False}
def sharded(model, root=True, layers=None, **settings):
    for layer in layers or model.model.layers:
        fully_shard(layer, **settings)
    return fully_shard(model, **settings) if root else model
def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
def mine(tensor):
    rows = rows_of(len(tensor), size, rank)
    return tensor[rows.start : rows.stop]
def take(model, samples, **more):
    return tomfisher.fisher_diagonal(model, samples, **options, **more)
"""

EQUAL = """
samples = samples_of(5, 9, 30, 12, 7, 21, 3)
for name in os.environ["FAMILIES"].split():
    root = name != "qwen3"
    model = random_model(name, 0.05)
    whole = take(model, samples)
    with ranks.alone():
        one = take(model, samples)
    parts = sharded(random_model(name, 0.05), root)
    held = dict(parts.named_parameters())
    bits = {n: local(p).detach().clone() for n, p in held.items()}
    F = take(parts, samples)
    after = dict(parts.named_parameters())
    stored = take(parts, samples, out=f"store-{name}")
    if rank == 0:
        whole.save(f"whole-{name}")
    readings = 3 if name == "qwen2-moe" else 2  # routers have to be asked for
    with torch.no_grad():  # FSDP2's own forward, with its hooks
        ids = torch.arange(3, 9)[None]
        forward = torch.equal(parts(ids).logits, model(ids).logits)
    told(**{name: {
        "names": list(F) == list(whole) == list(stored), "shapes": F.shapes == whole.shapes,
        "rows": all(torch.equal(local(F[n]), mine(whole[n])) for n in whole),
        "stored": all(torch.equal(stored[n], whole[n]) for n in whole),
        "one": max(float((stored[n] - one[n]).norm() / one[n].norm()) for n in one) <= 1e-6,
        "methods": F.methods == whole.methods == stored.methods,
        "same": all(after[n] is held[n] and torch.equal(local(after[n]), bits[n]) for n in held),
        "model": F.metadata["model"]["weights_sha256"] == whole.metadata["model"]["weights_sha256"],
        "gathered": 2 <= F.metadata["sharded"]["bytes_gathered"] / sum(
            p.numel() * 4 for p in held.values() if hasattr(p, "placements")
        ) <= readings,
        "forward": forward,
        "ranks": size == 1 or F.metadata["ranks"] == whole.metadata["ranks"],
    }})
told(held=sum(local(F[n]).numel() for n in F), all=sum(whole[n].numel() for n in whole))

partly = random_model("llama-gqa", 0.05)
whole = take(partly, samples)
sharded(partly, root=False, layers=partly.model.layers[:1])
F = take(partly, samples)
placed = {n: hasattr(F[n], "placements") for n in F}
told(partly=all(torch.equal(local(F[n]), mine(whole[n]) if placed[n] else whole[n]) for n in whole))
told(placed=placed == {n: hasattr(p, "placements") for n, p in partly.named_parameters() if n in placed})
"""


@pytest.mark.parametrize(
    ("size", "families"), [(1, ["llama-gqa"]), (2, ["llama-tied", "qwen2-moe"]), (3, ["qwen3"])]
)
def test_sharded_weights_give_the_bits_of_whole_ones(tmp_path: Path, size: int, families: list[str]) -> None:
    script, environment = SHARDED + EQUAL, {"FAMILIES": " ".join(families)}
    ended = [process.facts for process in run_ranks(tmp_path, script, size, environment)]
    for facts in ended:
        for name in families:
            assert [key for key, value in facts[name].items() if not value] == [], name
        assert facts["partly"] and facts["placed"]
    assert sum(facts["held"] for facts in ended) == ended[0]["all"]
    for name in families:
        shards = [
            (tmp_path / f"{kind}-{name}" / "model.safetensors").read_bytes() for kind in ("whole", "store")
        ]
        assert shards[0] == shards[1]
    assert not list(tmp_path.glob("*.unfinished"))


MASKS = """
model = random_model("llama-gqa", 0.05)
with torch.no_grad():  # pairs of hidden units that are the same: their squares are ties
    for layer in model.model.layers:
        mlp = layer.mlp
        for weight in (mlp.gate_proj.weight, mlp.up_proj.weight):
            weight[1::2] = weight[::2]
        mlp.down_proj.weight[:, 1::2] = mlp.down_proj.weight[:, ::2]
samples = samples_of(11)  # of one rank: the others have none, and the sums are those of one process
with ranks.alone():
    one = take(model, samples)
stored = take(sharded(model), samples, out="store")
told(samples=stored.metadata["ranks"]["samples"], equal=all(torch.equal(stored[n], one[n]) for n in one))
for scope in ("tensor", "model"):
    for kappa in (0.0033, 0.05):
        a, b = (tomfisher.top_fraction(F, kappa, scope=scope) for F in (stored, one))
        told(**{f"{scope} {kappa}": all(torch.equal(a[n], b[n]) for n in b)})
gate = "model.layers.0.mlp.gate_proj.weight"
values = one[gate].flatten()
k = tomfisher.top_fraction(one, 0.0033)[gate].numel()
told(tie=int((values == values.topk(k).values[-1]).sum()), odd=k % 2)
"""


def test_masks_of_sharded_weights_are_those_of_one_process_ties_included(tmp_path: Path) -> None:
    for process in run_ranks(tmp_path, SHARDED + MASKS, 3):
        facts = process.facts
        assert facts.pop("samples") == [1, 0, 0]
        assert facts.pop("tie") >= 2
        assert facts.pop("odd")  # the last of a pair that ties is left out
        assert facts
        assert all(facts.values()), facts


REFUSED = """
samples = samples_of(5, 9)
def refused(**settings):
    return refusal(take, sharded(random_model("llama-gqa", 0.05), **settings), samples)
told(hsdp=refused(mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))))
told(columns=refused(shard_placement_fn=lambda p: Shard(p.ndim - 1)))
told(cast=refused(mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16)))
told(reordered=refused(mesh=torch.distributed.device_mesh.DeviceMesh("cpu", [1, 0])))
model = sharded(random_model("llama-gqa", 0.05))
told(compiled=refusal(take, torch.compile(model), samples))
told(plain=refusal(take, fully_shard(torch.nn.Linear(4, 4)), samples))
told(meta=refusal(take, sharded(random_model("llama-gqa", 0.05).to("meta")), samples))
told(impl=refusal(take, model, samples, impl="triton-hopper"))
F, whole = take(model, samples, params="all"), take(random_model("llama-gqa", 0.05), samples, params="all")
told(everything=max(float((local(F[n]) - mine(whole[n])).norm() / whole[n].norm()) for n in whole) <= 1e-6)
with ranks.alone():
    told(alone=refusal(take, model, samples))
"""


def test_other_ways_of_spreading_weights_are_refused_by_name(tmp_path: Path) -> None:
    for process in run_ranks(tmp_path, SHARDED + REFUSED, 2):
        facts = process.facts
        assert "a mesh of 2 dimensions (HSDP" in facts["hsdp"]
        assert "model.embed_tokens.weight" in facts["columns"]
        assert "only rows are" in facts["columns"]
        assert "casts weights in every forward" in facts["cast"]
        assert "not that of all 2 ranks" in facts["reordered"]
        assert facts["compiled"].startswith("TypeError: The model is compiled")
        assert "model must be a causal language model of transformers, got FSDPLinear" in facts["plain"]
        assert "model.embed_tokens.weight and" in facts["meta"]
        assert "are on the meta device" in facts["meta"]
        assert facts["impl"].startswith("NotImplementedError")
        assert facts["everything"]
        assert "this one works alone" in facts["alone"]


KILLED = """
model = sharded(random_model("llama-gqa", 0.05))
calls = 0
def on_the_way(module, arguments):
    global calls
    calls += 1
    if calls == 60 and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
model.model.layers[1].mlp.up_proj.register_forward_pre_hook(on_the_way)
try:
    tomfisher.fisher_diagonal(model, samples_of(*[12] * 80), progress=False, tokens_per_batch=12)
except ranks.RankError as error:
    sys.exit(f"said: {error}")
"""


def test_a_rank_that_is_killed_ends_the_others_with_a_sentence(tmp_path: Path) -> None:
    ended = run_ranks(tmp_path, SHARDED + KILLED, 3, {"TOMFISHER_RANK_TIMEOUT": "4"})
    assert ended[1].code == -9
    for rank in (0, 2):
        assert ended[rank].code == 1
        assert "said: Rank 1 has ended" in ended[rank].err


DISTURBED = """
from tomfisher.fisher.growing import GrowingStore
from tomfisher.fisher.layerwise import LayerwiseRun
from tomfisher.runtime.layerwise import Layers

who, at = int(os.environ["WHO"]), os.environ["AT"]
def failing(owner, name, where):
    plain = getattr(owner, name)
    def run(self, *arguments, **more):
        if rank == who and where == at and (number := at.split()[-1]) in str(arguments[0]):
            raise OSError(f"failed on purpose at {at}")
        return plain(self, *arguments, **more)
    setattr(owner, name, run)
failing(Layers, "_step", "up 2")
failing(GrowingStore, "commit", "turned")
failing(LayerwiseRun, "down", "down 1")

samples = samples_of(5, 9, 30, 12, 7, 21, 3)
model = sharded(random_model("smollm3", 0.05))
told(said=refusal(take, model, samples, params="all", out="store"))
if not at:
    take(model, samples, params="all", out="whole")
"""


def test_ranks_that_stopped_at_different_layers_go_on_together(tmp_path: Path) -> None:
    for who, at in [(1, "up 2"), (1, "turned"), (0, "down 1"), (0, "")]:
        ended = run_ranks(tmp_path, SHARDED + DISTURBED, 2, {"WHO": str(who), "AT": at}, timeout=60)
        for rank, process in enumerate(ended):
            said = process.facts["said"]
            if at:
                expected = "OSError: failed on purpose" if rank == who else f"RankError: Rank {who} has ended"
                assert said.startswith(expected)
            else:
                assert said is None
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "store" / file.name).read_bytes()
    assert not list(tmp_path.glob("*.unfinished"))
