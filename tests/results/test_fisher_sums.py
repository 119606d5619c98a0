from __future__ import annotations

import torch

from tomfisher.masks import summary
from tomfisher.results.fisher_sums import fisher_table


def test_layers_are_summed_by_kind_of_tensor():
    F = {
        "layers.0.q.weight": torch.tensor([[0.0, 1.0], [2.0, 0.0]]),
        "layers.1.q.weight": torch.tensor([[3.0, 0.25], [0.5, 4.0]]),
        "head.weight": torch.tensor([8.0, 0.125]),
    }
    table = fisher_table(summary(F, [0.5, 2.0]), [0.5, 2.0])
    assert list(table.columns[1:]) == [
        "number",
        "entries",
        "zero",
        "smallest",
        "largest",
        "above 0.5",
        "above 2",
    ]
    assert [row[1:] for row in table.rows] == [
        ["2", "8", "2", "0", "4", "4", "2"],
        ["1", "2", "0", "0.125", "8", "1", "1"],
        ["3", "10", "2", "0", "8", "5", "3"],
    ]
    assert table.rows[-1][0] == "all"
    assert len(fisher_table(summary(F)).columns) == 6
