from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tomfisher.report import load, write
from tomfisher.report.page import render
from tomfisher.report.pictures import draw
from tomfisher.results.folder import EXTRAS
from tomfisher.results.row import grouped

pytestmark = pytest.mark.slow

FIGURES = [
    "accuracy",
    "perplexity",
    "fisher-values",
    "mask-map",
    "frequency-rows",
    "spectrum-q",
    "spectrum-k",
    "spectrum-change-q",
    "spectrum-change-k",
    "sink-mass",
    "sink-angle",
    "attention-maps",
    "ablations",
]
HOSTILE = '<script>alert("x")</script>&$\\frac{'
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """The parts of a page that the tests look at; refuses tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.headings, self.cells, self.text = [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(run):
    return Page(write(run).read_text())


def test_every_figure_stands_in_the_page_and_in_the_folder(run, page):
    assert [x["id"].partition("-")[2].partition("-")[2] for x in page.all("figure")] == FIGURES
    written = {file.name for file in (run / "figures").iterdir()}
    assert written == {f"{name}.{suffix}" for name in FIGURES for suffix in ("svg", "png")}
    assert written <= set(EXTRAS["figures"])  # what --overwrite deletes
    for name in FIGURES:
        assert (run / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        ET.parse(run / "figures" / f"{name}.svg")


def test_verdict_and_numbers_are_there(run, page):
    text = " ".join(page.text)
    for sentence in load(run).verdict.sentences:
        assert sentence in text
    assert "An effect was found." in text
    assert "0.200 [0.105, 0.348]" in page.cells  # false belief at kappa 0.001: 8 of 40
    assert "3e-07" in page.cells and "85.0%" not in page.cells
    assert f"tomfisher run --config {run}/config.yaml" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "a share of the entries of each weight matrix: at kappa = 0.001 the mask takes the 0.1 %"),
        ({"scope": "model"}, "a share of all weights of the model together"),
        ({"model": "testbed2-mpt"}, "trained once, with one seed"),
    ],
)
def test_the_verdict_says_what_kappa_is_a_share_of_and_how_many_trainings_were_seen(
    make_run, results, settings, words
):
    config = {**results.provenance["config"], **settings}
    text = write(
        make_run(results=replace(results, provenance={**results.provenance, "config": config}))
    ).read_text()
    verdict = text[text.index('class="verdict') : text.index('class="facts"')]
    assert words in verdict and ("one seed" in verdict) == ("model" in settings)


def test_ids_are_unique_and_every_reference_hits_one(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name, value in attributes.items():
            wanted = []
            if name in ("href", "xlink:href") and value.startswith("#"):
                wanted = [value[1:]]
            elif name == "aria-labelledby":
                wanted = value.split()
            elif "url(#" in (value or ""):
                wanted = re.findall(r"url\(#([^)]+)\)", value)
            assert set(wanted) <= set(ids), (name, value)


def test_headings_come_in_order(page):
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))


def test_tables_have_captions_and_scopes_and_figures_have_alternatives_with_numbers(page):
    tables = len(page.all("table"))
    assert tables >= 9 and len(page.all("caption")) == tables
    assert {x.get("scope") for x in page.all("th")} == {"row", "col"}
    pictures = [x for x in page.all("svg") if x.get("role") == "img"]
    assert len(pictures) == len(FIGURES) == len(page.all("figcaption"))
    assert all(len(re.findall(r"\d", x["aria-label"])) > 3 for x in pictures)


def test_the_page_refers_to_nothing_outside(run):
    text = write(run).read_text()
    assert "default-src 'none'" in text
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"' <)]+", text)) <= names
    page = Page(text)
    assert not page.all("link") and not page.all("iframe")
    sources = [a.get(k) for _, a in page.tags for k in ("src", "href", "xlink:href") if a.get(k)]
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in sources)


def test_the_security_policy_lets_our_script_run_and_no_other(run):
    import base64
    import hashlib

    text = write(run).read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_text_from_data_is_escaped(make_run, results, inside, ablations):
    config = {**results.provenance["config"], "model": HOSTILE, "task": HOSTILE}
    results = replace(
        results,
        rows=tuple(
            named for rows in grouped(results.rows) for named in (*rows, replace(rows[-1], condition=HOSTILE))
        ),
        provenance={
            **results.provenance,
            "config": config,
            HOSTILE: {HOSTILE: HOSTILE},
            "command": [HOSTILE],
        },
    )
    inside["unavailable"] = {HOSTILE: HOSTILE}
    inside["maps"] = {HOSTILE: {**inside["maps"]["1.0"], "tokens": [HOSTILE] * 3}}
    for part in inside["profile"]["parts"]:
        part["kind"] = part["kind"].replace("mlp.up_proj", HOSTILE)
    ablations["points"][0]["name"] = HOSTILE
    text = write(make_run(results=results, inside=inside, ablations=ablations)).read_text()
    page = Page(text)
    assert len(page.all("script")) == 1 and "<script>alert" not in text
    assert HOSTILE in page.cells
    assert [x["id"].partition("-")[2].partition("-")[2] for x in page.all("figure")] == FIGURES


def test_without_analysis_the_rest_is_reported_and_the_gap_is_said(make_run):
    page = Page(write(make_run()).read_text())
    found = ["run1-sweep-accuracy", "run1-sweep-perplexity", "run1-values-fisher-values"]
    assert [x["id"] for x in page.all("figure")] == found
    text = " ".join(page.text)
    assert "What this report cannot show" in text and "this run has no analysis.json" in text


def test_an_old_run_without_fisher_values_is_reported_and_the_gap_is_said(make_run, inside, ablations):
    folder = make_run(inside=inside, ablations=ablations, **{"fisher-values": None})
    page = Page(write(folder).read_text())
    figures = [x["id"].partition("-")[2].partition("-")[2] for x in page.all("figure")]
    assert figures == [name for name in FIGURES if name != "fisher-values"]
    text = " ".join(page.text)
    assert "What this report cannot show" in text and "this run has no fisher-values.json" in text


def test_a_model_without_frequencies_or_sinks_says_why(make_run, inside):
    for state in (inside["baseline"], *inside["states"].values()):
        state.pop("rope"), state.pop("sinks")
    inside["unavailable"] = {"rope": "mamba has no rotary embedding", "sinks": "mamba has no attention layer"}
    inside["maps"] = {}
    inside["profile"]["enrichment"] = None
    inside["profile"]["unavailable"] = {"heads": "mamba has no heads"}
    for part in inside["profile"]["parts"]:
        part["pairs"] = None
    page = Page(write(make_run(inside=inside)).read_text())
    assert [x["id"] for x in page.all("figure")][3:] == ["run1-mask-mask-map"]
    text = " ".join(page.text)
    for reason in ("mamba has no rotary embedding", "mamba has no attention layer", "mamba has no heads"):
        assert reason in text


def test_a_damaged_part_of_the_analysis_takes_only_its_own_figure_along(make_run, inside):
    inside["states"]["task-control"]["sinks"]["layers"][0]["first_mass"] = "?"
    inside["profile"]["groups"] = [{}]
    folder = make_run(inside=inside)
    pictures, missing = draw(load(folder))
    assert [m.what for m in missing] == ["Figure sink-mass"]
    assert [p.name for p in pictures] == [n for n in FIGURES if n not in ("sink-mass", "ablations")]
    text = " ".join(Page(write(folder).read_text()).text)
    assert "Figure sink-mass" in text and "A table of the mask" in text


def test_an_interrupted_study_says_so_at_the_top(make_run, results):
    folder = make_run(results=results)
    data = replace(load(folder), complete=False)
    text = " ".join(Page(render([data])[0]).text)
    assert "So far: an effect was found. Unfinished: run the same command to resume." in text


def test_the_page_is_small(run):
    assert write(run).stat().st_size < 5_000_000


def test_it_can_be_written_elsewhere_and_the_same_run_gives_the_same_page(run, tmp_path):
    first = write(run, tmp_path / "a.html")
    second = write(run, tmp_path / "deep" / "b.html")
    assert first == tmp_path / "a.html" and first.read_bytes() == second.read_bytes()
    assert not (run / "report.html").exists()
