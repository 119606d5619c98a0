from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")
from tomfisher.kernels import report, resources


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A README of two variants, as the writer leaves it."""
    chosen = [v for v in resources.all_variants() if v.label in ("64x64x64 w4 s3", "1024")][:2]
    monkeypatch.setattr(report, "all_variants", lambda: chosen)
    path = tmp_path / "README.md"
    path.write_text(f"# before\n\n{report.BEGIN}\n{report.END}\n\nafter\n")
    monkeypatch.setattr(report, "README", path)
    assert report.main([]) == 0
    return path


def as_triton(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.triton, "__version__", version)


def test_the_table_in_the_readme_is_true() -> None:
    assert report.main(["--check"]) == 0


def test_writing_keeps_the_text_around_the_table(small: Path) -> None:
    text = small.read_text()
    assert text.startswith("# before\n") and text.endswith("\n\nafter\n")
    assert text.count("| squared_gradient_kernel | bf16 | 64x64x64 w4 s3 |") == 1
    assert report.main([]) == 0 and small.read_text() == text


def test_a_changed_number_is_stale(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--check"]) == 0
    small.write_text(small.read_text().replace(" / ", " / 9"))
    assert report.main(["--check"]) == 1
    assert "make kernel-report" in capsys.readouterr().err


def test_every_triton_has_its_columns(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = small.read_text()
    mine = report.triton.__version__
    as_triton("0.9.1", monkeypatch)
    assert report.main([]) == 0
    both = small.read_text()
    assert f"| sm80 0.9.1 | sm80 {mine} | sm90 0.9.1 | sm90 {mine} |" in both
    as_triton(mine, monkeypatch)
    assert report.main(["--check"]) == 0
    assert report.main([]) == 0 and small.read_text() == both
    assert report.main(["--fresh"]) == 0 and small.read_text() == alone


def test_numbers_of_another_triton_are_not_compared_but_the_list_of_kernels_is(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_triton("0.9.1", monkeypatch)
    small.write_text(small.read_text().replace(" / ", " / 9"))
    assert report.main(["--check"]) == 0
    small.write_text(small.read_text().replace("| bf16 | 64x64x64", "| bf16 | 64x64x65"))
    assert report.main(["--check"]) == 1


def test_a_kernel_that_one_triton_leaves_out_is_stale(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, mine = report.all_variants(), report.triton.__version__
    as_triton("0.9.1", monkeypatch)
    monkeypatch.setattr(report, "all_variants", lambda: chosen[:1])
    small.write_text(small.read_text().rstrip())
    assert report.main([]) == 0
    as_triton(mine, monkeypatch)
    monkeypatch.setattr(report, "all_variants", lambda: chosen)
    assert report.main([]) == 0
    assert report.main(["--check"]) == 1
