"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from tomfisher.files import atomic_path
from tomfisher.report import architecture_page
from tomfisher.report.compare import comparison_sections
from tomfisher.report.data import RunData, beside_each_other, folder_labels, load
from tomfisher.report.pictures import Picture, draw
from tomfisher.report.sections import Section, Writer, context, facts
from tomfisher.report.style import TONES
from tomfisher.results.architecture_folder import Architectures, is_folder, read
from tomfisher.results.equal_kappa import sentences
from tomfisher.version import __version__

FILE = "report.html"
FIGURES = "figures"


def write(
    run: str | os.PathLike[str],
    output_path: str | os.PathLike[str] | None = None,
    compare_with: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the report on a run, or on a folder of architectures, and its figures as files into `RUN/figures`.

    The page is one file: styles, script and figures are in it, and it refers to nothing outside. What the run does not
    have (an analysis, some control masks, the end of an interrupted study) is said in it; the rest is there.

    Args:
        run: the run folder, or the folder of `tomfisher run --preset architectures`.
        output_path: the HTML file; None is `RUN/report.html`.
        compare_with: a second run folder, reported on the same page and compared where that makes sense.

    Returns:
        The HTML file.

    Raises:
        ValueError: a folder holds no results.
    """
    target = Path(run) / FILE if output_path is None else Path(output_path)
    if compare_with is None and is_folder(run):
        page, pictures = render_architectures(read(run))
        write_figures(pictures, Path(run) / FIGURES)
    else:
        runs = [load(run)] if compare_with is None else [load(run), load(compare_with)]
        page, drawn = render(runs)
        for data, pictures in zip(runs, drawn, strict=True):
            write_figures(pictures, data.path / FIGURES)
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def render(runs: list[RunData]) -> tuple[str, list[list[Picture]]]:
    """The page of one or two runs, and the figures of each.

    Args:
        runs: one or two.

    Returns:
        HTML, and per run its figures.
    """
    runs = beside_each_other(runs)
    drawn, shown = [], []
    for number, data in enumerate(runs, start=1):
        pictures, missing = draw(data)
        prefix = f"run{number}"
        sections = Writer(data, pictures, [*data.missing, *missing], prefix).sections()
        drawn.append(pictures)
        shown.append(_run(data, sections, prefix))
    comparison = None
    if len(runs) == 2:
        sections = comparison_sections(*runs)
        comparison = {
            "id": "comparison",
            "title": "Side by side",
            "sections": [_section(s) for s in sections],
        }
    return _page(f"Sensitive weights of {_models(runs)}", shown, comparison), drawn


def _models(runs: list[RunData]) -> str:
    """The models of the title; two runs of one model are told apart by their folders."""
    models = [str(data.config.get("model", "a model")) for data in runs]
    if len(set(models)) == len(models):
        return " and ".join(models)
    return f"{models[0]}: {' and '.join(folder_labels(runs))}"


def render_architectures(architectures: Architectures) -> tuple[str, list[Picture]]:
    """The page of a folder of architectures, and its figure."""
    pictures, missing = architecture_page.draw(architectures)
    shown = {
        "id": "architectures",
        "name": architecture_page.name_of(architectures),
        "found": any(outcome.found for outcome in architectures.outcomes),
        "word": architecture_page.word_of(architectures),
        "sentences": sentences(architectures.outcomes),
        "facts": architecture_page.facts(architectures),
        "sections": [
            _section(section) for section in architecture_page.sections(architectures, pictures, missing)
        ],
    }
    titles = ", ".join(outcome.title for outcome in architectures.outcomes)
    return _page(f"Sensitive weights of {titles}", [shown], None), pictures


def write_figures(pictures: list[Picture], folder: Path) -> None:
    """Write every figure as SVG and PNG into a folder."""
    for picture in pictures:
        for name, content in picture.files().items():
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(content)


def _run(data: RunData, sections: list[Section], prefix: str) -> dict[str, Any]:
    verdict = data.verdict
    word = "An effect was found." if verdict.found else "No effect was found."
    if not verdict.enough:
        word = "Not enough questions to find an effect."
    if not data.complete:
        word = f"So far: {word[0].lower()}{word[1:]} Unfinished: run the same command to resume."
    return {
        "id": prefix,
        "name": data.heading,
        "found": verdict.found,
        "word": word,
        "sentences": (*verdict.sentences, *context(data)),
        "facts": facts(data),
        "sections": [_section(section) for section in sections],
    }


def _section(section: Section) -> dict[str, Any]:
    """A section as the template takes it; only the figures are markup."""
    from markupsafe import Markup

    pictures = [
        {
            "name": picture.name,
            "caption": picture.caption,
            "says": "" if picture.tabled else picture.says,
            "svg": Markup(picture.inline(section.id)),
        }
        for picture in section.pictures
    ]
    return {**vars(section), "pictures": pictures}


def _page(title: str, shown: list[dict[str, Any]], comparison: dict[str, Any] | None) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("tomfisher.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    css = environment.get_template("report.css.j2").render(tones_of=TONES)
    script = environment.get_template("report.js").render()
    return environment.get_template("report.html.j2").render(
        title=title,
        lead="Which few weights does the model need for one ability, but not for language in general, and what breaks "
        "without them?",
        css=Markup(css),
        script=Markup(script),
        script_hash=f"sha256-{_digest(script)}",
        runs=shown,
        comparison=comparison,
        version=__version__,
    )


def _digest(script: str) -> str:
    """What a content security policy wants to know of an inline script."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
