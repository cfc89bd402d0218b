"""The page stands alone: no link leaves it, every anchor leads somewhere, every file it names is there."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from synthetic_runs import make_run, write_plan

from analysis import published, style
from analysis.inline_svg import inline
from analysis.page import MANIFEST, stylesheet
from analysis.questions import series_label
from analysis.report import make_report

VOID = {"meta", "link", "input", "img", "br", "hr", "wbr"}


class Reader(HTMLParser):
    """Collects ids, links, sources, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.open: list[str] = []
        self.labels: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.ids[values["id"]] += 1
        self.links += [values[name] for name in ("href", "src", "xlink:href", "action", "poster") if name in values]
        if tag == "svg" and values.get("role") == "img":
            self.labels.append(values.get("aria-label", ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    for variant in ("base", "stochastic"):
        for seed in range(2):
            make_run(runs, variant=variant, seed=seed, train_rows=False, metrics_every=20)
    make_run(runs, variant="base+planner.candidates=500", seed=0, changes={"planner.candidates": 500}, metrics_every=20)
    write_plan(runs, "paper", "fig4", [("base", "cheetah_run", seed) for seed in range(3)])
    return make_report([runs / "paper"], tmp_path_factory.mktemp("report"))[0].parent


@pytest.fixture(scope="module")
def text(out: Path) -> str:
    return (out / "index.html").read_text()


@pytest.mark.slow
def test_no_source_or_link_leaves_the_page(text: str, out: Path) -> None:
    for link in Reader(text).links:
        assert re.match(r"#|data:|[\w./=+-]+$", link), link
        assert "//" not in link.split("base64,")[0]
        if not link.startswith(("#", "data:")):
            assert (out / link).is_file(), link
    assert "<script" not in text and "@import" not in text and "http://" not in text and "https://" not in text
    assert not re.findall(r"url\((?!#|data:)", text)


@pytest.mark.slow
def test_every_anchor_is_there_once_and_every_tag_closes(text: str) -> None:
    page = Reader(text)

    assert page.open == []
    assert [name for name, count in page.ids.items() if count > 1] == []
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


@pytest.mark.slow
def test_every_figure_is_described_and_its_data_is_in_the_page(text: str, out: Path) -> None:
    page = Reader(text)

    assert len(page.labels) > 20 and all(page.labels)
    embedded = re.findall(r'download="([^"]+)" href="data:text/csv;base64,([^"]+)"', text)
    assert embedded
    for name, content in embedded:
        assert base64.b64decode(content).decode() == (out / "figures" / name).read_text()
    for figure in (out / "figures").glob("*.csv"):
        assert {p.suffix for p in (out / "figures").glob(f"{figure.stem}.*")} >= {".csv", ".png", ".svg", ".pdf"}


@pytest.mark.slow
def test_every_table_is_written_as_csv_markdown_and_latex(out: Path) -> None:
    names = {path.stem for path in (out / "tables").iterdir()}

    assert {"table1", "fig4-verdict", "ablations", "aggregates", "runs", "provenance"} <= names
    for name in names:
        rows = len(pd.read_csv(out / "tables" / f"{name}.csv"))
        latex, markdown = (out / "tables" / f"{name}.tex").read_text(), (out / "tables" / f"{name}.md").read_text()
        assert rows > 0 and latex.count("\\\\\n") == markdown.count("\n| ")
        assert not re.search(r"(?<!\\)[%&#_](?![^\n]*(\\\\|&))", latex.split("\\begin{tabular}")[0].split("\n", 1)[1])


@pytest.mark.slow
def test_captions_say_how_to_read_and_which_commits(text: str) -> None:
    assert "a range of episodes, not a confidence interval" in text
    assert "5 seeds × 10 evaluation episodes are 5 units" in text
    assert "Code: c0ffee0" in text
    assert "PlaNet + candidates 500" in text


@pytest.mark.slow
def test_an_earlier_reports_files_go_and_foreign_files_stay(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make_run(runs, seed=0, until=100, state="running", train_rows=False, metrics_every=50)
    write_plan(runs, "smoke", "dmc6", [("base", "cheetah_run", 0)])
    out = tmp_path / "report"
    make_report([runs / "smoke"], out)
    stale = out / "figures" / "gone.csv"
    stale.write_text("")
    listed = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps({"files": [*listed["files"], "figures/gone.csv", "../runs/keep.txt"]}))
    (out / "figures" / "mine.txt").write_text("mine")
    (runs / "keep.txt").write_text("outside")

    make_report([runs / "smoke"], out)

    assert not stale.exists()
    assert (out / "figures" / "mine.txt").exists() and (runs / "keep.txt").exists()


def test_inline_svg_keeps_its_labels_and_takes_the_pages_colours_and_font() -> None:
    svg = (
        '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><metadata>x</metadata>'
        f'<g id="a"><path id="b" d="M 1.23456 2" style="stroke: {style.INK}" clip-path="url(#c)"/>'
        "<text style=\"font-size: 8px; font-family: 'DejaVu Sans'\">0.00125</text></g>"
        '<defs><clipPath id="c"/></defs></svg>'
    )

    drawn = inline(svg, "fig4-0", 'A < "B"')

    assert "0.00125" in drawn and "M 1.23 2" in drawn
    assert "stroke: var(--ink)" in drawn and "font-family: var(--sans)" in drawn
    assert "url(#fig4-0-c)" in drawn and 'id="fig4-0-c"' in drawn and 'id="a"' not in drawn
    assert 'aria-label="A &lt; &quot;B&quot;"' in drawn and "metadata" not in drawn


def test_a_variant_has_one_colour_everywhere_and_variants_of_one_figure_differ() -> None:
    for figure in published.FIGURES.values():
        colours = [style.colour(variant) for variant in figure.curves]
        assert len(set(colours)) == len(colours), figure.name
    assert style.colour("base") == style.colour("base")
    assert style.colour("kl_scale_3") in {light for light, _ in style.PALETTE.values()}
    assert style.colour("stochastic+planner.candidates=500") == style.colour("stochastic")


def contrast(first: str, second: str) -> float:
    def luminance(hex_colour: str) -> float:
        channels = [int(hex_colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_lines_and_text_stand_out_from_light_and_dark_ground() -> None:
    light, dark = re.findall(r"--ground: light-dark\((#\w+), (#\w+)\)", stylesheet())[0]

    for name, (on_light, on_dark) in style.PALETTE.items():
        assert contrast(on_light, light) >= 3 and contrast(on_dark, dark) >= 3, name  # WCAG for graphics
    for name in ("ink", "muted"):
        assert contrast(style.NEUTRALS[name][0], light) >= 4.5 and contrast(style.NEUTRALS[name][1], dark) >= 4.5, name


def test_labels_come_from_the_ablation_files() -> None:
    assert series_label("stochastic · bfloat16") == "Stochastic (SSM) · bfloat16"
    assert series_label("base+planner.candidates=500") == "PlaNet + candidates 500"
    assert series_label("my_own") == "my own"


def test_figures_are_drawn_without_a_display() -> None:
    assert matplotlib.get_backend().lower() == "agg"


@pytest.mark.slow
def test_presets_have_sections_and_files_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path, preset="quick", until=40, state="stopped")
    make_run(tmp_path, preset="smoke", returns=lambda episode, seed: [1.0, 3.0])

    index, _ = make_report([tmp_path], tmp_path / "report")

    text = index.read_text()
    page = Reader(text)
    assert text.index('id="preset-quick"') < text.index('id="preset-smoke"')
    assert [name for name, count in page.ids.items() if count > 1] == []
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    for preset in ("quick", "smoke"):
        assert (tmp_path / "report" / preset / "figures" / "fig4.csv").exists()
    assert "quick preset: other sizes" in text.lower() and "cannot learn" in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_chromium_draws_it_at_phone_width_without_a_console_error(out: Path, tmp_path: Path) -> None:
    # A window is never narrower than 500 pixels, a frame is as narrow as it is told; its page tells how wide it got.
    told = "<script>onload = () => console.log('width', document.documentElement.scrollWidth)</script></body>"
    framed = tmp_path / "framed.html"
    framed.write_text((out / "index.html").read_text().replace("</body>", told))
    frame = tmp_path / "frame.html"
    frame.write_text(f'<iframe src="file://{framed}" style="width: 360px; height: 20000px; border: 0"></iframe>')
    picture = tmp_path / "phone.png"
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'user'}",
        "--window-size=500,2000", f"--screenshot={picture}", f"file://{frame}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert picture.stat().st_size > 10_000
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    widths = [int(width) for width in re.findall(r'"width (\d+)"', done.stderr)]
    assert len(console) == len(widths) == 1, console
    assert 300 < widths[0] <= 360, "something sticks out of a page of 360 pixels"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_every_table_fits_a_window_of_1280_pixels(out: Path, tmp_path: Path) -> None:
    told = (
        "<script>onload = () => document.querySelectorAll('.scroll').forEach(table =>"
        " console.log('table', table.scrollWidth - table.clientWidth))</script></body>"
    )
    page = tmp_path / "page.html"
    opened = (out / "index.html").read_text().replace("<details ", "<details open ").replace("</body>", told)
    page.write_text(opened)
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'user'}", "--window-size=1280,2000", f"--screenshot={tmp_path / 'page.png'}",
        f"file://{page}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    wider = [int(pixels) for pixels in re.findall(r'"table (\d+)"', done.stderr)]
    assert len(wider) > 5 and max(wider) == 0, wider
