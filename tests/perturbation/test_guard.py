from __future__ import annotations

import signal
import threading

import pytest
import torch

from tomfisher.masks import SparseMask
from tomfisher.ops import scatter_
from tomfisher.perturbation import perturb
from tomfisher.perturbation.entries import Entries
from tomfisher.perturbation.guard import deferred_interrupt


@pytest.fixture(autouse=True)
def _python_handles_ctrl_c():
    """A process started in the background of a script inherits an ignored SIGINT; Python then raises nothing."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    """Ctrl-C: its handler runs before the next line of the main thread."""
    signal.raise_signal(signal.SIGINT)


def target() -> tuple[dict[str, torch.Tensor], SparseMask]:
    tensors = {n: torch.randn(40) for n in ("a", "b", "c")}
    return tensors, SparseMask({n: torch.arange(5) for n in tensors}, {n: (40,) for n in tensors})


@pytest.fixture
def interrupted_writes(monkeypatch):
    """Every sparse write is hit by Ctrl-C after its first tensor; returns how far each write came."""
    progress = []

    def slow(entries: Entries, values) -> None:
        progress.append(0)
        for i, (target, part) in enumerate(zip(entries.targets, entries.split(values), strict=True)):
            scatter_([target.view], [target.index], [part])
            progress[-1] += 1
            if i == 0:
                press()

    def switch() -> list[int]:
        monkeypatch.setattr(Entries, "_put", slow)
        return progress

    return switch


def test_ctrl_c_waits_for_the_end_of_the_block() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt):
        with deferred_interrupt():
            press()
            press()
            steps.append("rest of the block")
        steps.append("never")
    assert steps == ["rest of the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_ctrl_c_nothing_happens_and_the_handler_is_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ZeroDivisionError), deferred_interrupt():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_the_users_own_handler_gets_the_signal_once() -> None:
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with deferred_interrupt():
            press()
            press()
            assert seen == []
        assert seen == [signal.SIGINT]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with deferred_interrupt():
            press()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_just_runs_the_block() -> None:
    tensors, mask = target()
    before = {n: t.clone() for n, t in tensors.items()}
    inside: list[bool] = []

    def work() -> None:
        with perturb(tensors, mask, fill="zero"):
            inside.append(all((t[:5] == 0).all() for t in tensors.values()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [True]
    assert all(torch.equal(tensors[n], before[n]) for n in before)


def test_ctrl_c_during_apply_leaves_the_weights_as_they_were(interrupted_writes) -> None:
    tensors, mask = target()
    before = {n: t.clone() for n, t in tensors.items()}
    perturbation = perturb(tensors, mask, fill="zero")
    progress = interrupted_writes()
    with pytest.raises(KeyboardInterrupt):
        perturbation.apply()
    assert progress == [3, 3]  # written completely, then undone completely
    assert not perturbation.applied
    assert all(torch.equal(tensors[n], before[n]) for n in before)


def test_ctrl_c_while_entering_the_block(interrupted_writes) -> None:
    tensors, mask = target()
    before = {n: t.clone() for n, t in tensors.items()}
    perturbation = perturb(tensors, mask, fill="zero")
    interrupted_writes()
    with pytest.raises(KeyboardInterrupt), perturbation:
        pytest.fail("the block must not run")
    assert all(torch.equal(tensors[n], before[n]) for n in before)


def test_ctrl_c_during_undo_is_raised_when_the_undo_is_complete(interrupted_writes) -> None:
    tensors, mask = target()
    before = {n: t.clone() for n, t in tensors.items()}
    with pytest.raises(KeyboardInterrupt), perturb(tensors, mask, fill="zero") as perturbation:
        progress = interrupted_writes()
    assert progress == [3] and not perturbation.applied
    assert all(torch.equal(tensors[n], before[n]) for n in before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
