"""Models that transformers has split over ranks: F of one process, in parts, and refusals by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import run_ranks

pytestmark = pytest.mark.slow

LOADING = """
import transformers
import truth
from tiny_models import config_of
from transformers.distributed import DistributedConfig

def split(config, experts=False, dtype="float32", **options):
    name = config if isinstance(config, str) else "model"
    folder = f"{name}-{dtype}"
    if rank == 0:
        random_model(config, 0.05).to(getattr(torch, dtype)).save_pretrained(folder)
    dist.barrier()
    load = transformers.AutoModelForCausalLM.from_pretrained
    given = {"ep_size": size} if experts else {}
    plan = DistributedConfig(tp_size=size, **given, **options)
    models = [load(folder, dtype=dtype, distributed_config=plan).eval(), load(folder, dtype=dtype).eval()]
    return models

def whole(F):
    return {name: f.full_tensor() if hasattr(f, "full_tensor") else f for name, f in F.items()}

def held(F):
    return [f.to_local() if hasattr(f, "to_local") else f for f in F.values()]

def errors(F, model, samples):  # of each tensor, in the norm, by float64
    exact = truth.fisher(model, samples)
    return {n: float((f.double() - exact[n]).norm() / exact[n].norm().clamp_min(1e-30)) for n, f in F.items()}

def take(model, samples, **options):
    return tomfisher.fisher_diagonal(model, samples, progress=False, **{"params": "all", **options})

samples = samples_of(5, 9, 30, 12, 7, 21, 3)
"""

FAMILIES = """
for name, experts, dtype in (
    ("llama-gqa", False, "float64"),
    ("qwen3", False, "float64"),
    ("llama-tied", False, "float32"),
    ("mixtral", False, "float32"),
    ("qwen3-moe", True, "float32"),
):
    model, one = split(name, experts, dtype)
    before = {n: p.to_local().clone() if hasattr(p, "to_local") else p.clone() for n, p in model.named_parameters()}
    F, again = take(model, samples), take(model, samples)
    with ranks.alone():
        G = take(one, samples)
    found, alone = errors(whole(F), one, samples), errors(G, one, samples)
    told(**{name + " experts" * experts: {
        "worst": max(found.values()),
        "beyond one": max(found[n] - alone[n] for n in G),
        "again": all(map(torch.equal, held(F), held(again))),
        "same names": list(F) == list(G),
        "placed": all(getattr(f, "placements", 0) == getattr(model.get_parameter(n), "placements", 0)
                      for n, f in F.items()),
        "parts": sum(hasattr(f, "to_local") for f in F.values()),
        "model": F.metadata["model"] == G.metadata["model"],
        "ranks": F.metadata["ranks"],
        "fallback": sorted(n for n, method in F.methods.items() if method != "captured"),
        "as it was": all(
            torch.equal(p.to_local() if hasattr(p, "to_local") else p, before[n])
            and p.requires_grad and p.grad is None for n, p in model.named_parameters()
        ),
    }})
    if name == "llama-gqa":
        take(model, samples, out="store")
        G.save("one") if rank == 0 else None
        dist.barrier()
        stored = tomfisher.FisherDiagonal.load("store")
        told(stored=all(torch.equal(stored[n], f) for n, f in whole(F).items()), shapes=stored.shapes == G.shapes)
"""


def test_every_family_has_the_fisher_of_one_process(tmp_path: Path) -> None:
    for process in run_ranks(tmp_path, LOADING + FAMILIES, 2):
        facts = process.facts
        assert facts.pop("stored") and facts.pop("shapes")
        assert len(facts) == 5
        for name, found in facts.items():
            double = name in ("llama-gqa", "qwen3")
            assert found.pop("worst") <= (2e-7 if double else 2e-6), name
            assert found.pop("beyond one") <= (1e-7 if double else 1e-6), name
            assert found.pop("parts") >= 10, name
            assert found.pop("ranks") == {
                "world_size": 2,
                "split": "model",
                "samples": [7, 7],
                "tokens": [87, 87],
            }
            assert found.pop("fallback") == ["model.embed_tokens.weight"] * (name == "llama-tied")
            assert all(found.values()), (name, found)


UNEVEN = """
config = config_of(
    "llama-gqa", num_attention_heads=6, num_key_value_heads=3, hidden_size=24, intermediate_size=49, head_dim=4
)
model, one = split(config)
F = take(model, samples, tokens_per_batch=40)
with ranks.alone():
    G = take(one, samples, tokens_per_batch=40)
told(apart=apart(whole(F), G), rows=F["model.layers.0.mlp.gate_proj.weight"].to_local().shape[0])
told(heads=refusal(take, split("llama-gqa")[0], samples))
"""


def test_parts_of_unequal_size_and_heads_that_cannot_be_shared(tmp_path: Path) -> None:
    ended = [process.facts for process in run_ranks(tmp_path, LOADING + UNEVEN, 3)]
    assert [facts["rows"] for facts in ended] == [17, 17, 15]
    for facts in ended:
        assert facts["apart"] <= 2e-6
        assert facts["heads"].startswith(
            "ValueError: LlamaForCausalLM has num_attention_heads=4, which 3 ranks"
        )


REFUSED = """
norm = "model.layers.*.self_attn.q_norm"
told(unsummed=refusal(take, split("qwen3", tp_plan={norm: "replicate"})[0], samples))
told(in_place=refusal(take, split("llama4")[0], samples))
model = split("llama-gqa", tp_plan={"model.norm": "all_reduce"})[0]
told(style=refusal(take, model, samples))
model = split("llama-gqa")[0]
def by_myself():
    with ranks.alone():
        take(model, samples)
told(alone=refusal(by_myself))
embedding = model.model.embed_tokens
embedding.weight.register_hook(lambda g: g)
told(hooks=refusal(take, model, samples))
"""


def test_what_would_be_wrong_is_refused_by_name(tmp_path: Path) -> None:
    for process in run_ranks(tmp_path, LOADING + REFUSED, 2):
        facts = process.facts
        assert "model.layers.0.self_attn.q_norm.weight" in facts["unsummed"]
        assert "replicated_with_grad_allreduce" in facts["unsummed"]
        assert facts["style"].startswith("ValueError: model.norm is split over the ranks as 'all_reduce'")
        assert "Llama4ForCausalLM has no forward with gradients" in facts["in_place"]
        assert "this process works alone" in facts["alone"]
        assert "embed_tokens.weight has hooks on its gradient" in facts["hooks"]


STUDIED = """
from tomfisher import evaluate, tasks
from tomfisher.models import load_model

loaded = load_model("testbed-llama", device="cpu")
if rank == 0:
    loaded.model.save_pretrained("testbed")
dist.barrier()
plan = DistributedConfig(tp_size=size)
model = transformers.AutoModelForCausalLM.from_pretrained("testbed", distributed_config=plan).eval()
stories = tasks.load("testbed", n=24, seed=0)
text = " ".join(story.prompt for story in stories)
samples = tomfisher.encode(loaded.tokenizer, stories[:6])
def measured(model):
    score = evaluate.score(model, loaded.tokenizer, stories, progress=False, batch_size=6)
    words = evaluate.score(model, loaded.tokenizer, stories[:4], method="generate", progress=False)
    ppl = evaluate.perplexity(model, loaded.tokenizer, text, progress=False, window=16, stride=8)
    return [r.correct for r in score.records], [r.correct for r in words.records], ppl.token
def close(a, b):
    return a[:2] == b[:2] and abs(a[2] / b[2] - 1) < 1e-5

F = take(model, samples, params="decoder-linear", out="store")
stored = tomfisher.FisherDiagonal.load("store")
for scope in ("tensor", "model"):
    masks = [tomfisher.top_fraction(each, 0.01, scope=scope) for each in (F, stored)]
    told(**{f"mask {scope}": all(torch.equal(masks[0][n], masks[1][n]) for n in stored)})
mask = tomfisher.top_fraction(F, 0.02)

alone = loaded.model
def own(model):
    return {n: p.to_local().clone() if hasattr(p, "to_local") else p.clone() for n, p in model.named_parameters()}
def same(model, whole):
    named = dict(whole.named_parameters())
    return all(torch.equal(p.full_tensor() if hasattr(p, "full_tensor") else p, named[n])
               for n, p in model.named_parameters())
with ranks.alone():
    before = measured(alone)
told(before=close(measured(model), before))
weights = own(model)
for fill in ("mean", "noise", "scale:0.5", 0.25):
    with tomfisher.perturb(model, mask, fill, seed=4), tomfisher.perturb(alone, mask, fill, seed=4):
        told(**{f"written {fill}": same(model, alone)})
        if fill == "mean":
            with ranks.alone():
                after = measured(alone)
            told(after=close(measured(model), after), damaged=before != after)
    told(**{f"undone {fill}": all(torch.equal(each, weights[n]) for n, each in own(model).items())})
"""


def test_a_split_model_is_studied_as_one_process_does(tmp_path: Path) -> None:
    for process in run_ranks(tmp_path, LOADING + STUDIED, 2):
        assert len(process.facts) == 13
        assert all(process.facts.values()), process.facts


ENDING = """
model = split("llama-gqa")[0]
many = samples_of(*[12] * 200)
steps = 0
def on_the_way(module, arguments):
    global steps
    steps += 1
    if steps == 60 and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
model.register_forward_pre_hook(on_the_way)
try:
    take(model, many, tokens_per_batch=12)
except ranks.RankError as error:
    sys.exit(f"said: {error}")
"""


def test_a_rank_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    first, second = run_ranks(tmp_path, LOADING + ENDING, 2, {"TOMFISHER_RANK_TIMEOUT": "4"})
    assert first.code == 1
    assert "said: Rank 1 has ended, and the others with it: no sign of life for 4 s" in first.err
    assert second.code == -9
