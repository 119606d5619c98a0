"""What the criteria of a study rank by: Fisher stores, the model's weights, and what one more pass gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tomfisher.masks import criteria
from tomfisher.masks.criteria import Criterion, Known, Scored
from tomfisher.runtime import ranks
from tomfisher.studies.config import Config
from tomfisher.studies.parsing import parse_fill
from tomfisher.tensor_files import TensorFile, sha256_of_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from tomfisher.fisher import FisherDiagonal
    from tomfisher.models.load import LoadedModel
    from tomfisher.sample import Sample

OTHER = {"task": "control", "control": "task"}
MOMENTS = TensorFile(
    "moments",
    1,
    sha256_of_tensors,
    "a study with --criterion",
    "Delete it and run the same command again: the other parts are kept.",
)


class Materials:
    """Gives the scores of every criterion; what is read of the texts is written once.

    Args:
        config: the study.
        fisher: the Fisher diagonals "task" and "control".
        model: loads the model that the gradients are taken of.
        samples: makes the samples "task" or "control" of a model.
        folder: where sums of gradients and norms of inputs are kept.
        say: told of every pass.
    """

    def __init__(
        self,
        config: Config,
        fisher: Mapping[str, FisherDiagonal],
        model: Callable[[], LoadedModel],
        samples: Callable[[str, LoadedModel], list[Sample]],
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self.config = config
        self.fisher = fisher
        self.folder = folder
        self._model, self._samples, self._say = model, samples, say
        self._moments: dict[tuple[str, str], dict[str, Tensor]] = {}

    def prepare(self, names: Collection[str | None]) -> None:
        """Take the passes that these criteria need, those of one set of texts together.

        Raises:
            ValueError: a criterion needs activations that the model does not show.
        """
        from tomfisher.fisher.first_moments import GRADIENT, INPUT_NORM

        needed = {need for name in names for need in criteria.get(name).needs}
        for which in self.fisher:
            missing = [
                need for need in (GRADIENT, INPUT_NORM) if need in needed and not self._read(which, need)
            ]
            if missing:
                self._take(which, missing)

    def scores(self, name: str | None, which: str) -> Mapping[str, Tensor]:
        """What a criterion says about every weight on one set of texts; of the Fisher diagonal, the store itself."""
        criterion = criteria.get(name)
        if criterion.name == criteria.FISHER:
            return self.fisher[which]
        return Scored(criterion, tuple(self.fisher[which]), partial(self._known, criterion, which))

    def _known(self, criterion: Criterion, which: str, name: str) -> Known:
        from tomfisher.perturbation.change import expected_change

        needs = criterion.needs
        weight = None
        if {"weight", "change"} & set(needs):
            weight = self._model().model.get_parameter(name).detach().cpu()
        return Known(
            fisher=self.fisher[which][name] if "fisher" in needs else None,
            other=self.fisher[OTHER[which]][name] if "other" in needs else None,
            quantile=self.config.ratio_quantile,
            weight=weight,
            gradient=self._moments[which, "gradient"][name] if "gradient" in needs else None,
            input_norm=self._moments[which, "input_norm"][name] if "input_norm" in needs else None,
            change=expected_change(weight, parse_fill(self.config.fill))
            if weight is not None and "change" in needs
            else None,
        )

    def _file(self, which: str, need: str) -> Path:
        return self.folder / f"{which}-{need}.safetensors"

    def _read(self, which: str, need: str) -> bool:
        """Whether it is there; of several ranks the first one looks."""
        if (which, need) in self._moments:
            return True
        file = self._file(which, need)
        if not ranks.current().first("a look at the sums", file.is_file):
            return False
        self._moments[which, need], _ = MOMENTS.read(file)
        return True

    def _take(self, which: str, missing: list[str]) -> None:
        from tomfisher.fisher.first_moments import first_moments

        config, loaded = self.config, self._model()
        samples = self._samples(which, loaded)
        self._say(f"{' and '.join(missing).replace('_', ' ')} of {len(samples)} {which} samples")
        moments = first_moments(
            loaded.model,
            samples,
            list(self.fisher[which]),
            missing,
            config.labels,
            config.reduction,
            config.tokens_per_batch,
            ranks.current().is_first,
            config.seed,
        )
        for need in missing:
            tensors: dict[str, Tensor] = getattr(moments, need)
            header = {"samples": moments.num_samples, "what": need, "texts": which}
            file = self._file(which, need)
            file.parent.mkdir(parents=True, exist_ok=True)
            ranks.current().first("writing the sums", partial(MOMENTS.write, file, tensors, header))
            self._moments[which, need], _ = MOMENTS.read(file)
