"""Multiple choice by log-probability: which answer does the model find most likely?"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tomfisher.evaluate.execute import batch_arguments, can_pack, can_share, computes_as_made, execute
from tomfisher.evaluate.normalize import TOTAL, check_normalize, decide, scores_of
from tomfisher.evaluate.plan import (
    Batch,
    Pack,
    Plan,
    cost,
    merged_rows,
    plan_shared,
    plan_whole,
    rows_of_plan,
)
from tomfisher.evaluate.records import Record, Scores
from tomfisher.evaluate.stories import check_stories, gap_of, warn_of_equal
from tomfisher.evaluate.together import agree
from tomfisher.progress import progress_bar
from tomfisher.runtime import ranks
from tomfisher.runtime.batches import pad
from tomfisher.runtime.device import device_of
from tomfisher.runtime.forward import logits_at, set_rows
from tomfisher.runtime.gate import check_ids, check_model, check_targets, why_not_finite
from tomfisher.runtime.memory import is_out_of_memory
from tomfisher.runtime.modes import measuring
from tomfisher.runtime.positions import check_length
from tomfisher.runtime.rules import BATCHES, PADDED, SINGLE, Rules, check_rules, difference, weights_kept
from tomfisher.runtime.tensor_parallel import team_for
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.tasks.wording import Wording
from tomfisher.unknown import warn_of_dropped_characters, warn_of_unknown_tokens

BATCH_SIZE = 32
WHOLE, STEPS, PACKED = "whole", "steps", "packed"  # the strategies: see `tomfisher.evaluate.plan`


class ChoiceEvaluator:
    """Stories encoded and planned once, to be scored on many models or many states of one model.

    For every choice the log-probability is log p(gap + choice | prompt) = Σ_t log p(token t | all before), the sum
    over all tokens of gap and choice, in nats, with a float32 log-softmax. The choice with the largest one is
    predicted, or with the largest one per token, character or byte (`normalize`: see `tomfisher.evaluate.normalize`).
    Choices that tie for the first place share the point: with m of them, the right one among them gives 1/m (the
    expected value of a fair coin; low-precision logits do tie), and `predicted` is the first of them.

    Sequences that are equal, or the beginning of another one, are run once: both one-token answers of a
    question are read off one row.

    Args:
        tokenizer: a transformers tokenizer.
        stories: objects with `id, group, condition, cell, kind, prompt, choices, answer`, and `gap` if they say what
            stands before their answers.
        batch_size: number of rows in one forward, at least 1.
        pack: whether rows may stand side by side in one sequence where the model takes that. Low precision rounds
            differently then: False to compare with the same model in a state that cannot (interventions).
        normalize: what choices are compared by: "total", "token", "character" or "byte".
        gap: what stands between prompt and answer: see `tomfisher.tasks.wording.Wording`, also for the three below.
        bos: begin-of-sequence token in front: "auto", "yes" or "no".
        chat_template: every prompt becomes the user's turn in the tokenizer's chat template.
        system: the system's turn before it.

    Raises:
        ValueError: no stories; a story with fewer than two choices, equal choices, an answer that is no index
            into them, the reserved group name "all", or an id that another story has; a `pack` that is no bool; a
            setting that is none, or that the tokenizer cannot follow.
    """

    @plain_torch()
    def __init__(
        self,
        tokenizer: Any,
        stories: Iterable[Any],
        batch_size: int = BATCH_SIZE,
        pack: bool = True,
        normalize: str = TOTAL,
        gap: str = "auto",
        bos: str = "auto",
        chat_template: bool = False,
        system: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        if not isinstance(pack, bool):
            raise ValueError(f"pack is {pack!r}; it must be True or False.")
        check_normalize(normalize)
        self.stories = tuple(stories)
        check_stories(self.stories)
        self.batch_size = batch_size
        self.pack = pack
        self.normalize = normalize
        self.wording = Wording(gap, bos, chat_template, system)
        spans: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self._owners: list[int] = []
        for index, story in enumerate(self.stories):
            prompt = self.wording.prompt(tokenizer, story.prompt)
            common, answers = self.wording.branch(tokenizer, prompt, story.choices, gap_of(story))
            spans += [(tuple(common), tuple(answer)) for answer in answers]
            self._owners += [index] * len(answers)
        warn_of_equal(spans, self._owners, self.stories)
        self._num_tokens = [len(after) for _, after in spans]
        self._spans = spans
        self._lay_out(merge=True)
        warn_of_unknown_tokens(tokenizer, [row.ids for row in self.rows], "the questions")
        warn_of_dropped_characters(tokenizer, (story.prompt for story in self.stories), "the questions")
        self._settled: dict[tuple[Rules, bool | str], tuple[str, str]] = {}

    def _lay_out(self, merge: bool) -> None:
        """Rows, and what is read off each: (answer number, position, target id)."""
        self.rows, self._row_of = merged_rows(self._spans, merge)
        self._reads: list[list[tuple[int, int, int]]] = [[] for _ in self.rows]
        for number, (before, tokens) in enumerate(self._spans):
            reads = self._reads[self._row_of[number]]
            reads += [(number, len(before) - 1 + i, token) for i, token in enumerate(tokens)]
        self._plans: dict[tuple[str, str], Plan] = {}

    @functools.cached_property
    def _unmerged(self) -> ChoiceEvaluator:
        """The same, but no answer is read off a longer row: for models where numbers depend on a row's length."""
        other = copy.copy(self)
        other._lay_out(merge=False)
        return other

    def plan(self, strategy: str, batches: str = PADDED) -> Plan:
        """The forwards that a call of `score` runs, made once.

        Args:
            strategy: `WHOLE`, `STEPS` or `PACKED`.
            batches: which whole rows may stand in one forward (`tomfisher.runtime.rules`).
        """
        if (strategy, batches) not in self._plans:
            size = 1 if batches == SINGLE else self.batch_size
            self._plans[strategy, batches] = (
                plan_whole(self.rows, size, padded=batches == PADDED)
                if strategy == WHOLE
                else plan_shared(self.rows, size, pack=strategy == PACKED)
            )
        return self._plans[strategy, batches]

    def check_fit(self, model: Any) -> None:
        """Refuse a model that cannot read every story: its vocabulary, its positions, the state of its weights.

        Raises:
            ValueError: the first story that does not fit is named.
        """
        check_model(model)
        check_ids(model, (row.ids for row in self.rows), self._called)
        check_targets(model, ([token for *_, token in reads] for reads in self._reads), self._called)
        longest = max(range(len(self._owners)), key=lambda number: len(self.rows[self._row_of[number]].ids))
        story = self.stories[self._owners[longest]]
        check_length(model, len(self.rows[self._row_of[longest]].ids), f"Story {story.id!r} with its answer")

    @property
    def sequences(self) -> list[list[int]]:
        """Token ids of every text that a model reads: each prompt with each answer, but for its last token."""
        return [[*prompt, *answer[:-1]] for prompt, answer in self._spans]

    @plain_torch()
    def ask(self, model: Any) -> Rules:
        """What the model says to the rules that scoring it rests on.

        Raises:
            ValueError: as for `score`.
        """
        self.check_fit(model)
        return check_rules(model, self.sequences, self.batch_size)

    @plain_torch()
    def score(
        self,
        model: Any,
        share_prefix: bool | str = "auto",
        progress: bool = True,
        rules: Rules | None = None,
    ) -> Scores:
        """Score all stories on a model as it is now.

        In an initialised process group of `torch.distributed` every rank makes this call with the same arguments, runs
        some of the forwards that one process would run, and gets all answers: the very numbers of one process.

        Args:
            model: a causal language model of transformers, on any device, in any dtype.
            share_prefix: compute the tokens that several sequences begin with once (the same numbers up to
                rounding): rows side by side in one sequence, each token seeing its own beginning alone; else from a
                cache. "auto": where the model keeps nothing but keys and values, nobody has put hooks, forwards,
                modules or attention of their own into it (`tomfisher.interventions.intervene` is known), and the first
                answers are those of single rows; True: there too, or refuse; False: never. Rows are padded on the
                right: a hook that counts tokens from the end needs `batch_size` 1 as well.
            progress: show a bar on a terminal.
            rules: what `ask` gave for this model, with other values in its weights maybe; None asks it.

        Returns:
            `Scores`, records in the order of the stories; `shared_prefix`, `packed` and `rules` say how it was run.

        Raises:
            ValueError: a story is longer than the model's positions, `share_prefix=True` on a model whose cache
                cannot be repeated, the model breaks a rule that a likelihood rests on (`tomfisher.runtime.rules`), or
                it gives a log-probability that is not finite (the story is named).
            RankError: another rank has ended.
        """
        team = team_for(model)
        with team.call("score"):
            return self._score(model, share_prefix, progress, rules, team)

    def _score(
        self, model: Any, share_prefix: bool | str, progress: bool, rules: Rules | None, team: ranks.Team
    ) -> Scores:
        if share_prefix not in (True, False, "auto"):
            raise ValueError(f"share_prefix is {share_prefix!r}; it must be 'auto', True or False.")
        texts = [self._spans, [[story.id, story.answer] for story in self.stories]]
        agree(
            team, model, "what is scored", texts, [share_prefix, self.batch_size, self.pack, self.normalize]
        )
        if rules is None:
            rules = self.ask(model)
        else:
            set_rows(model, rules.rows)
        reason, totals = rules.reason, None
        with weights_kept(model):
            for strategy, batches in self._ways(model, share_prefix, rules):
                laid_out = self if batches == PADDED else self._unmerged
                outcome = laid_out._run_together(model, strategy, batches, rules, progress, team)
                if isinstance(outcome, Tensor):
                    totals = outcome
                    break
                reason = outcome
        if totals is None:
            raise ValueError(
                f"share_prefix=True, but on {type(model).__name__} {reason}. Use share_prefix='auto' or False."
            )
        self._settled[rules, share_prefix] = strategy, batches
        self._check_finite(model, totals)
        kept = {**rules.to_dict(), "strategy": strategy, "batches": batches, "reason": reason}
        return Scores(
            tuple(self._records(totals.tolist())),
            "choice",
            strategy != WHOLE,
            strategy == PACKED,
            self.normalize,
            self.wording.to_dict(),
            rules=kept,
        )

    def _ways(self, model: Any, share_prefix: bool | str, rules: Rules) -> list[tuple[str, str]]:
        """Strategy and kind of batches, in the order of trial; what was found right is not tried again."""
        if (settled := self._settled.get((rules, share_prefix))) is not None:
            return [settled]
        sharing = []
        if share_prefix and rules.padded and not rules.rows.offset:
            sharing += [PACKED] if self.pack and can_pack(model) else []
            sharing += (
                [STEPS] if can_share(model) and (share_prefix is True or computes_as_made(model)) else []
            )
        if share_prefix is True and not sharing:
            raise ValueError(
                f"share_prefix=True, but the cache of {type(model).__name__} holds more than keys and values (or is "
                "not known to), so it cannot be repeated. Use share_prefix='auto' or False."
            )
        whole = [] if share_prefix is True else BATCHES[BATCHES.index(rules.batches) :]
        return [(strategy, PADDED) for strategy in sharing] + [(WHOLE, batches) for batches in whole]

    def _run_together(
        self, model: Any, strategy: str, batches: str, rules: Rules, progress: bool, team: ranks.Team
    ) -> Tensor | str:
        """`_run` with the parts of the plan split over ranks: what one of them objects to, none goes on with."""
        plan = self.plan(strategy, batches)
        own = tuple(plan[i] for i in team.share([round(cost([part])) for part in plan]))
        outcome = self._run(model, own, strategy == WHOLE, batches, rules, progress and team.is_first)
        reasons = team.exchange("the strategy", outcome if isinstance(outcome, str) else None)
        if isinstance(outcome, str) or any(reasons):
            return next(reason for reason in reasons if reason)
        numbers = {n for row in rows_of_plan(own) for n, _, _ in self._reads[row]}
        found = {number: float(outcome[number]) for number in numbers}
        return torch.tensor(team.merged("the answers", len(self._owners), found), dtype=torch.float64)

    def _run(
        self, model: Any, plan: Plan, whole: bool, batches: str, rules: Rules, progress: bool
    ) -> Tensor | str:
        """Log-probabilities of a plan's answers; or why this way is not right here, seen on its first batches."""
        device = device_of(model)
        totals = torch.zeros(len(self._owners), dtype=torch.float64)
        tried = {(0, False)} if batches == SINGLE else set()
        rows = len(rows_of_plan(plan))
        bar = progress_bar(total=rows, desc="choice", unit="row", enabled=progress)
        try:
            with measuring(model), bar:
                for batch, cache in execute(model, plan, self.rows, device):
                    self._read(model, batch, cache, device, totals)
                    kind = bool(batch.past), any(len(pack.paths) > 1 for pack in batch.packs)
                    if kind not in tried:
                        apart = self._apart(model, batch, device, totals)
                        if apart > rules.tolerance:
                            return f"answers differ by {apart:.2g} nats from those of single rows"
                        tried.add(kind)
                    bar.update(len(batch.rows))
        except Exception as error:
            if whole or tried or is_out_of_memory(error) or isinstance(error, ranks.RankError):
                raise
            return f"it raises {type(error).__name__}: {error}"
        return totals

    def _apart(self, model: Any, batch: Batch, device: torch.device, totals: Tensor) -> float:
        """How far answers in a batch are from those read off single rows, in nats per token, of two of its rows."""
        rows = sorted(batch.rows, key=lambda r: len(self.rows[r].ids))
        alone, tokens = torch.zeros_like(totals), torch.zeros_like(totals)
        for r in {rows[0], rows[-1]}:
            ids = self.rows[r].ids
            self._read(model, Batch((Pack(ids, {r: range(len(ids))}),), 0, (-1,)), None, device, alone)
            for number, _, _ in self._reads[r]:
                tokens[number] += 1
        read = tokens > 0
        return difference(totals[read] / tokens[read], alone[read] / tokens[read])

    def _read(self, model: Any, batch: Batch, cache: Any, device: torch.device, totals: Tensor) -> None:
        """Run one batch and add the log-probabilities of its answer tokens to `totals`."""
        reads = [
            (i, path[position - batch.past], number, token)
            for i, pack in enumerate(batch.packs)
            for row, path in pack.paths.items()
            for number, position, token in self._reads[row]
        ]
        keep = sorted({at for _, at, _, _ in reads})
        column = {at: k for k, at in enumerate(keep)}
        places = sorted({(i, column[at]) for i, at, _, _ in reads})
        place = {where: k for k, where in enumerate(places)}
        ids = pad([pack.ids for pack in batch.packs], device)
        arguments = batch_arguments(model, batch, cache, device)
        logits = logits_at(model, ids, torch.tensor(keep, device=device), **arguments)
        where = torch.tensor(places, device=logits.device)
        logprobs = torch.log_softmax(logits[where[:, 0], where[:, 1]].float(), dim=-1)
        which = [place[i, column[at]] for i, at, _, _ in reads]
        picked = logprobs[which, [token for *_, token in reads]]
        totals.index_add_(0, torch.tensor([number for _, _, number, _ in reads]), picked.cpu().double())

    def _called(self, row: int) -> str:
        """How a message names a row: by the first story that is read off it."""
        return f"Story {self.stories[self._owners[self._row_of.index(row)]].id!r}"

    def _check_finite(self, model: Any, totals: Tensor) -> None:
        bad = (~totals.isfinite()).nonzero().flatten().tolist()
        if bad:
            story = self.stories[self._owners[bad[0]]]
            raise ValueError(
                f"Story {story.id!r}: the log-probability of an answer is {totals[bad[0]].item()} ({len(bad)} of "
                f"{len(totals)} answers are not finite). Every score must be finite. {why_not_finite(model)}"
            )

    def _records(self, totals: list[float]) -> Iterable[Record]:
        start = 0
        for story in self.stories:
            end = start + len(story.choices)
            logprobs, num_tokens = tuple(totals[start:end]), tuple(self._num_tokens[start:end])
            start = end
            values = scores_of(logprobs, story.choices, num_tokens, self.normalize)
            correct, best, margin = decide(values, story.answer)
            yield Record.of_story(story, (correct,), story.choices[best], logprobs, margin, num_tokens)
