"""Fine-tuned models made one: weights averaged with their Fisher diagonals, file by file."""

from tomfisher.merging.average import fisher_average
from tomfisher.merging.merge import Merged, merge

__all__ = ["Merged", "fisher_average", "merge"]
