"""Where and how a kernel is started: a side stream, another GPU, a CUDA graph, a compiled function."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import truth
from tomfisher.ops import masked_fill_mean_, square_accumulate_, squared_gradient_, topk, weight_sums

pytest.importorskip("triton")

BOUNDS = [(0, 100), (100, 164), (164, 300)]
OFFSETS = [0, 100, 164, 300]


def operands(device: str = "cuda") -> tuple[Tensor, Tensor]:
    return torch.randn(300, 256, device=device).bfloat16(), torch.randn(300, 512, device=device).bfloat16()


def check(F: Tensor, Y: Tensor, X: Tensor, times: int = 1) -> None:
    truth.assert_squared_gradient(F / times, Y, X, BOUNDS, 2 * times)


def test_a_side_stream_is_waited_for_by_nothing_but_its_reader() -> None:
    side = torch.cuda.Stream()
    values, weights = (
        torch.randn(3_000_000, device="cuda"),
        [torch.randn(70_000, device="cuda") for _ in range(5)],
    )
    Y, X = operands()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # what the kernels read is not there yet when they are started
        doubled = 2 * values
        F = squared_gradient_(torch.zeros(256, 512, device="cuda"), Y, X, offsets=OFFSETS)
        sums = weight_sums(weights)
        found = topk(doubled, 3000)
    torch.cuda.current_stream().wait_stream(side)
    check(F, Y, X)
    assert torch.equal(found.indices, torch.sort(2 * values, descending=True, stable=True).indices[:3000])
    assert torch.allclose(sums[:, 0], torch.stack([w.double().sum() for w in weights]), rtol=0, atol=1e-6)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_a_gpu_that_is_not_the_current_one() -> None:
    Y, X = operands("cuda:1")
    check(squared_gradient_(torch.zeros(256, 512, device="cuda:1"), Y, X, offsets=OFFSETS), Y, X)
    values = torch.randn(200_000, device="cuda:1")
    wanted = torch.sort(values, descending=True, stable=True).indices[:70]
    assert torch.equal(topk(values, 70).indices, wanted)
    weight = torch.arange(8.0, device="cuda:1")
    masked_fill_mean_([weight], [torch.tensor([7], device="cuda:1")])
    assert weight[7] == 3 and torch.cuda.current_device() == 0


def test_a_graph_is_captured_after_the_same_call_on_its_stream_and_replayed() -> None:
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    Y, X = operands()
    F = torch.zeros(256, 512, device="cuda")
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        squared_gradient_(F, Y, X, offsets=OFFSETS)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph, stream=side):
        squared_gradient_(F, Y, X, offsets=OFFSETS)
    F.zero_()
    for n in range(100):  # as many tables as the cache holds, and more
        squared_gradient_(torch.zeros(256, 512, device="cuda"), Y, X, offsets=[0, n + 1, 300])
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    check(F, Y, X, times=3)


def test_capture_is_refused_where_a_table_would_have_to_be_sent() -> None:
    gradients, F = [torch.randn(99, device="cuda")], [torch.zeros(99, device="cuda")]
    square_accumulate_(F, gradients)
    with (
        pytest.raises(RuntimeError, match="Only squared_gradient_ can be captured"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        square_accumulate_(F, gradients)


def test_a_compiled_function_gives_the_same_bits() -> None:
    Y, X = operands()

    @torch.compile
    def twice(F: Tensor, Y: Tensor, X: Tensor) -> Tensor:
        squared_gradient_(F, 2 * Y, X, offsets=OFFSETS)
        return F + 1

    F, expected = torch.zeros(256, 512, device="cuda"), torch.zeros(256, 512, device="cuda")
    squared_gradient_(expected, 2 * Y, X, offsets=OFFSETS)
    assert torch.equal(twice(F, Y, X), expected + 1) and torch.equal(F, expected)
