"""Pages that name files, links and commands name those that exist. The site itself is checked by `make docs`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.docs.command_line import PAGE, command_reference
from tests.docs.fenced_doctests import fenced
from tests.docs.session import ROOT

DOCS = ROOT / "docs"
OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
"""Pages that are no part of the site, so that its build does not check their links."""
SOURCES = ("flows", "sdsearch", "storage", "schemas", "benchmarks", "tests")

_LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)")
_DOCS_PATH = re.compile(r"docs/[\w./-]+\.(?:md|svg)")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles)
    return {re.sub(r"\s+", "-", title) for title in words}


def broken_links(page: Path) -> list[str]:
    """Return the links of a page to files and anchors that do not exist."""
    broken = []
    for path, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{page.name}: {path}#{anchor}")
    return broken


def missing_pages(text: str) -> set[str]:
    """Return the paths below docs/ that a text names and that do not exist."""
    return {path for path in _DOCS_PATH.findall(text) if not (ROOT / path).exists()}


@pytest.mark.parametrize("page", OUTSIDE, ids=lambda page: page.name)
def test_links_outside_the_site_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A title, indeed\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md#a-title-indeed) [b](there.md#other) [c](gone.md) [d](https://x.y)", encoding="utf-8")
    assert broken_links(page) == ["page.md: there.md#other", "page.md: gone.md#"]


def test_pages_that_sources_and_messages_name_exist() -> None:
    files = [path for name in SOURCES for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".md", ".toml")]
    named = {path: missing_pages(path.read_text(encoding="utf-8")) for path in files if path != Path(__file__)}
    assert {str(path): pages for path, pages in named.items() if pages} == {}
    assert missing_pages("see docs/no-such-page.md") == {"docs/no-such-page.md"}


def test_the_table_of_mutations_names_mutations_files_and_tests_that_exist() -> None:
    lines = (ROOT / "tests" / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:4]] for line in lines if "::" in line and line[0] == "|"]
    mutants = tomllib.loads((ROOT / "tests" / "mutation" / "mutants.toml").read_text(encoding="utf-8"))["mutants"]
    files = list((ROOT / "tests").rglob("test_*.py"))
    tests = {
        f"{path.name}::{name}" for path in files for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))
    }
    assert len(rows) > 100
    assert {name for name, _, _ in rows} <= {mutant["name"] for mutant in mutants}
    assert [file for _, file, _ in rows if not (ROOT / file).exists()] == []
    assert {test for _, _, test in rows} <= tests


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_every_page_is_in_the_sites_menu() -> None:
    def paths(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        below = entry.values() if isinstance(entry, dict) else entry
        assert isinstance(below, list) or isinstance(entry, dict)
        return [path for item in below for path in paths(item)]

    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*") if path.suffix in (".md", ".ipynb")]
    assert sorted(paths(config["nav"])) == sorted(pages)


def test_the_reference_of_the_command_line_is_the_programs() -> None:
    assert PAGE.read_text(encoding="utf-8") == command_reference(), (
        "docs/reference/cli.md is not what the program says; make it again with: "
        "python -m tests.docs.command_line --write"
    )


def test_examples_of_docstrings_become_blocks_of_code() -> None:
    text = "Does it.\n\n>>> one()[0][1]\n1\n>>> two()\n\nMore words.\n\n>>> three()\n3\n"
    blocks = fenced(text).split("```")
    assert [block.strip() for block in blocks] == [
        "Does it.",
        "pycon\n>>> one()[0][1]\n1\n>>> two()",
        "More words.",
        "pycon\n>>> three()\n3",
        "",
    ]
    assert fenced("No example: a > b >>> c.") == "No example: a > b >>> c."
