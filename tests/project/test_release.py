"""What is made of the project for others: site, citation, cards, image, versions."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from support import versions

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def project() -> dict[str, Any]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return versions.tomllib.loads(text)["project"]


# The site -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hooks() -> Any:
    """docs/site_hooks.py, as mkdocs loads it."""
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def named_in(nav: Any) -> Iterator[str]:
    """The pages that a navigation names."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from named_in(entry)


def test_every_page_is_in_the_navigation_once(hooks):
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    named = list(named_in(settings["nav"]))
    assert sorted(named) == sorted(pages | set(hooks.OUTSIDE) | {"REFERENCE"})
    assert not pages & set(hooks.OUTSIDE), "a page of docs/ is hidden by one from elsewhere"
    assert all((ROOT / file).is_file() for file in hooks.OUTSIDE.values())


def site_pages(hooks: Any) -> dict[str, str]:
    """Page of the site → its text, with the links that the site has."""
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    return {
        page: hooks.with_links_of_the_site(
            (ROOT / hooks.file_of(page)).read_text(encoding="utf-8"), page
        )
        for page in [*pages, *hooks.OUTSIDE]
    }


def anchors(text: str, hooks: Any) -> set[str]:
    """The anchors of a page's headings, code blocks left out."""
    prose = "".join(part for is_code, part in hooks._parts(text) if not is_code)
    return {hooks.slug(re.sub(r"[`*\\]", "", h)) for h in re.findall(r"(?m)^#+ (.+)$", prose)}


def test_every_link_of_the_site_leads_to_a_page_and_a_heading(hooks):
    pages = site_pages(hooks)
    headings = {page: anchors(text, hooks) for page, text in pages.items()}
    number = 0
    for page, text in pages.items():
        for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
            folder = DOCS / page
            there = (folder.parent / target).resolve().relative_to(DOCS).as_posix()
            there = there if target else page
            assert there in pages or (DOCS / there).is_file(), f"{page}: {target}"
            assert not anchor or anchor in headings[there], f"{page}: {target}#{anchor}"
            number += 1
    assert number >= 100


def test_links_between_pages_and_to_other_files_become_those_of_the_site(hooks):
    of = hooks.with_links_of_the_site
    assert of("[a](docs/faq.md#b) [c](LICENSE)", "index.md") == "[a](faq.md#b) [c](license.md)"
    card = "[card](../tokenenv/assets/exact/README.md)"
    assert of(card, "tasks.md") == "[card](models-of-exact.md)"
    assert of("[f](../faq.md) [g](3-kl.md)", "course/5-ppo.md") == "[f](../faq.md) [g](3-kl.md)"
    assert of("[h](#here) [i](https://a.b/c.md)", "faq.md") == "[h](#here) [i](https://a.b/c.md)"
    code = "```text\n[a](docs/faq.md)\n```"
    assert of(code, "index.md") == code
    assert hooks.slug("Why is `J*` above? π and β") == "why-is-j-above-π-and-β"


def test_the_reference_has_every_public_room(hooks):
    """The doors with an `__all__`; the builds of the bundled tasks are commands."""
    doors = {
        ".".join(path.relative_to(ROOT).parent.parts)
        for package in ("tokenenv", "agents")
        for path in (ROOT / package).rglob("__init__.py")
        if "__all__ =" in path.read_text(encoding="utf-8") and path.parent.name != "build"
    }
    assert doors <= set(hooks.REFERENCE)
    for module in hooks.REFERENCE:
        path = ROOT.joinpath(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), module


# The citation, the cards, the image ---------------------------------------------------------------


def test_the_citation_says_what_the_metadata_say():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    said = project()
    assert {"cff-version", "message", "title", "authors"} <= set(citation), "what the format asks"
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["title"] == said["name"] and citation["version"] == said["version"]
    assert citation["abstract"] == said["description"]
    assert citation["license"] == said["license"] and citation["keywords"] == said["keywords"]
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in said["authors"]
    ]


def test_every_model_that_ships_has_a_card():
    weights = [*ROOT.glob("tokenenv/**/*.safetensors"), *ROOT.glob("agents/**/*.safetensors")]
    assert len(weights) == 4
    for file in weights:
        folder = file.parents[1]
        text = (folder / "README.md").read_text(encoding="utf-8")
        part = {"reference": "## Reference", "reward_model": "## Reward model"}[file.parent.name]
        for heading in (part, "## Use", "## Limits", "## License"):
            assert f"\n{heading}\n" in text, f"{folder.name}: {heading}"
        assert f"python -m tokenenv.tasks.{folder.name}.build --seed" in text
        assert re.search(r"cross-entropy|accuracy \(± standard error\)", text)
        assert "no text, label or weight of others" in text
        assert json.loads((folder / "card.json").read_text(encoding="utf-8"))


def test_the_image_runs_the_demo_on_files_that_reach_it():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (command,) = re.findall(r"^CMD (\[.+\])$", text, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (demo,) = re.findall(r"^demo: setup\n\t\$\(BIN\)/(.+)$", makefile, re.MULTILINE)
    assert json.loads(command) == demo.split()
    copied = [line.split()[1:-1] for line in re.findall(r"^COPY (?!--from).+$", text, re.MULTILINE)]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    for source in (name for names in copied for name in names):
        assert (ROOT / source).exists() and f"!{source}" in ignored
    wanted = [project()["readme"], *project()["license-files"], "pyproject.toml"]
    assert {*wanted, "tokenenv", "agents"} <= {name for names in copied for name in names}


# Versions -----------------------------------------------------------------------------------------


def bounds() -> dict[str, str]:
    """Library → the lower bound of pyproject.toml; each has one, and no other condition."""
    found = {}
    for line in versions.dependencies():
        requirement = Requirement(line)
        (only,) = requirement.specifier
        assert only.operator == ">=", f"{line}: docs/versions.md says that there is no upper bound"
        found[requirement.name] = only.version
    return found


def test_the_oldest_versions_are_the_lower_bounds():
    pinned = {n: line.split("==")[1] for n, line in versions.pins("constraints/oldest.txt").items()}
    assert Version(pinned.pop("huggingface-hub")) < Version("2"), "of the oldest transformers"
    assert {n: Version(v) for n, v in pinned.items()} == {
        n: Version(v) for n, v in bounds().items()
    }


def test_the_newest_and_the_usual_versions_are_allowed_by_the_bounds():
    for name in ("constraints/newest.txt", "constraints.txt"):
        pinned = {n: re.split("==|;", line)[1] for n, line in versions.pins(name).items()}
        assert set(versions.SHOWN) <= set(pinned)
        for library, bound in bounds().items():
            assert library not in pinned or Version(pinned[library]) >= Version(bound), library


def test_the_table_of_versions_has_a_row_for_each_set_and_python():
    rows = versions.rows_of(versions.PAGE.read_text(encoding="utf-8"))
    assert [(row.libraries, row.python) for row in rows] == [
        (name, python) for name, pythons in versions.SETS.items() for python in pythons
    ]
    assert all(row.result for row in rows)
    assert {f"{path}.txt" for path in versions.SETS} == {
        path.name for path in (ROOT / "constraints").iterdir()
    }
    assert all((ROOT / file).exists() for file in versions.FILES)


def test_a_row_is_renewed_and_the_others_stay():
    page = versions.PAGE.read_text(encoding="utf-8")
    new = versions.Row("oldest", "3.11", "1.0", "2.0", "3.0", "4.0", "5.0", "6 passed")
    text = versions.with_rows(page, [new])
    assert "| oldest | 3.11 | 1.0 | 2.0 | 3.0 | 4.0 | 5.0 | 6 passed |" in text
    before, after = versions.rows_of(page), versions.rows_of(text)
    assert [a for a in after if a != new] == [
        b for b in before if b.python + b.libraries != "3.11oldest"
    ]
    assert versions.with_rows(text, before) == page


# Dependencies -------------------------------------------------------------------------------------


BROUGHT = {"markupsafe": "jinja2", "pandas": "stable-baselines3"}
"""Library → the dependency that can't be without it, and whose text or tables are meant."""

_IMPORT = re.compile(r"(?m)^ *(?:from ([A-Za-z_]\w*)[\w.]* import |import ([A-Za-z_]\w*))")


def test_what_is_imported_is_asked_for():
    """A library that a module imports is the standard one, a dependency, or in an extra."""
    said = project()
    lists = [said["dependencies"], *said["optional-dependencies"].values()]
    names = {Requirement(line).name for lines in lists for line in lines}
    modules = {{"pyyaml": "yaml", "pillow": "PIL"}.get(n, n.replace("-", "_")) for n in names}
    known = {*sys.stdlib_module_names, *modules, *BROUGHT, "tokenenv", "agents"}
    assert set(BROUGHT.values()) <= names
    for package in ("tokenenv", "agents"):
        for path in (ROOT / package).rglob("*.py"):
            found = {a or b for a, b in _IMPORT.findall(path.read_text(encoding="utf-8"))}
            assert found <= known, path.relative_to(ROOT)
