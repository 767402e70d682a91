"""What `make docs` adds to the pages of this folder, so that one text serves site and repository.

README, the changelog and the model cards lie elsewhere and become pages; each public module gets
one that mkdocstrings fills from its docstrings. Links are those of the repository, relative to the
file that they stand in; on the site they lead to the page that was made of the file.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

OUTSIDE = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "license.md": "LICENSE",
    "models-of-exact.md": "tokenenv/assets/exact/README.md",
    "models-of-reviews.md": "tokenenv/assets/reviews/README.md",
}
"""Page → the file of the repository that it is made of, which does not lie in docs/."""

REFERENCE = (
    *("tokenenv", "tokenenv.env", "tokenenv.vector_env", "tokenenv.feature_envs"),
    *("tokenenv.wrappers", "tokenenv.episodes", "tokenenv.mdp", "tokenenv.maths"),
    *("tokenenv.data", "tokenenv.combinations", "tokenenv.models", "tokenenv.prompts"),
    *("tokenenv.addresses", "tokenenv.remote"),
    *("tokenenv.rewards", "tokenenv.rendering", "tokenenv.optimum", "tokenenv.tasks"),
    *("tokenenv.tasks.exact", "tokenenv.tasks.reviews"),
    *("agents", "agents.config", "agents.vec_env", "agents.policy", "agents.rollout"),
    *("agents.ppo", "agents.settings", "agents.training", "agents.held_out"),
    *(
        "agents.checkpoints",
        "agents.evaluation",
        "agents.credit",
        "agents.zoo",
        "agents.reward_quality.refresh",
        "agents.scaling",
    ),
)
"""The public modules: rooms with an `__all__`."""

_FENCE = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?!\w+:|#|/)([^)#\s]+)(#[^)\s]*)?\)")


def slug(heading: str, separator: str = "-") -> str:
    """The anchor of a heading, as the repository's pages have it: Greek letters stay."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def page_of(path: str) -> str:
    """The page, or the file beside the pages, that a file of the repository becomes."""
    pages = {file: page for page, file in OUTSIDE.items()}
    return pages.get(path, path.removeprefix("docs/"))


def file_of(page: str) -> str:
    """The file of the repository that a page is made of: the inverse of `page_of`."""
    return OUTSIDE.get(page, f"docs/{page}")


def with_links_of_the_site(markdown: str, page: str) -> str:
    """The text of a page with its relative links leading to pages; code is left alone."""
    folder = posixpath.dirname(file_of(page))

    def of_the_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        there = posixpath.relpath(page_of(target), posixpath.dirname(page) or ".")
        return f"]({there}{link[2] or ''})"

    return "".join(
        part if is_code else _LINK.sub(of_the_site, part) for is_code, part in _parts(markdown)
    )


def _parts(markdown: str) -> Iterator[tuple[bool, str]]:
    """The text in order: (is it a code block, the part)."""
    end = 0
    for fence in _FENCE.finditer(markdown):
        yield False, markdown[end : fence.start()]
        yield True, fence[0]
        end = fence.end()
    yield False, markdown[end:]


def reference_page(module: str) -> str:
    """Where a module's reference stands."""
    return f"reference/{module}.md"


# What mkdocs calls --------------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Anchors as on the repository's pages, and the reference's pages in the navigation."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    (entry,) = (entry for entry in config.nav if entry == {"Reference": "REFERENCE"})
    entry["Reference"] = [{module: reference_page(module)} for module in REFERENCE]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that do not lie in docs/."""
    from mkdocs.structure.files import File

    texts = {page: (ROOT / file).read_text(encoding="utf-8") for page, file in OUTSIDE.items()}
    texts |= {reference_page(module): f"::: {module}\n" for module in REFERENCE}
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of the repository into those of the site."""
    return with_links_of_the_site(markdown, page.file.src_uri)
