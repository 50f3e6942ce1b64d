"""Hooks of mkdocs: files outside docs/ become pages, links keep their targets, the API reference is made of docstrings.

All pages are plain Markdown with links that GitHub follows. On the site a link to a file that the site has not
(source, results) becomes its text.
"""

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "draftopd"
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""path in the repository -> on the site"""
PICTURES = ("benchmarks/results/*.png", "notebooks/*.ipynb")
ALONE = ("trace", "blocks", "errors")
"""modules outside packages that others build on"""
LINK = re.compile(r"(!?)\[([^\[\]]*|!\[[^\]]*\]\([^)]*\))\]\(([^)\s]+)\)")
FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)

NESTED = re.compile(r"^  (?=\S)", re.MULTILINE)
"""what GitHub takes for a part of a list; Python-Markdown wants four spaces"""

known: dict[str, str] = {}
"""path in the repository -> on the site, of every file that the site has"""


def on_config(config: MkDocsConfig) -> None:
    """Puts a page for each package under the reference."""
    assert config.nav is not None
    for section in config.nav:
        if "Reference" in section:
            pages = [{title: f"api/{name}.md"} for name, title in _packages()]
            section["Reference"].insert(1, {"API by package": pages})


def on_files(files: Files, config: MkDocsConfig) -> None:
    known.clear()
    known.update({f"docs/{file.src_uri}": file.src_uri for file in files})
    known.update(PAGES)
    known.update({(path := str(p.relative_to(ROOT))): path for shape in PICTURES for p in ROOT.glob(shape)})
    for path, place in known.items():
        if not path.startswith("docs/"):
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    for name, _ in _packages():
        files.append(File.generated(config, f"api/{name}.md", content=_package_page(name)))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    site = page.file.src_uri
    if site == "api.md":
        for home, names in _public().items():
            for name in names:
                markdown = markdown.replace(f"`{name}`", f"[`{name}`][draftopd.{home}.{name}]", 1)
    path = next((path for path, place in known.items() if place == site), None)
    if path is None:
        return markdown  # made here
    parts = FENCED.split(markdown)  # every second one is code
    parts[::2] = [NESTED.sub("    ", part) for part in parts[::2]]
    parts[::2] = [LINK.sub(lambda link: _link(link, path, site), part) for part in parts[::2]]
    return "".join(parts)


def _link(link: re.Match[str], path: str, site: str) -> str:
    """From page `path` of the repository, which lies at `site`, as the site has it."""
    picture, text, to = link.groups()
    if re.match(r"[a-z]+:|#", to):
        return link[0]
    file, _, anchor = to.partition("#")
    there = posixpath.normpath(posixpath.join(posixpath.dirname(path), file))
    if there not in known:
        return str(text) if (ROOT / there).exists() else link[0]  # mkdocs warns of that one
    place = known[there]
    if file.endswith(".md") and text in (file, posixpath.basename(file)):
        text = _title(path, file)
    moved = posixpath.relpath(place, posixpath.dirname(site) or ".")
    return f"{picture}[{text}]({moved}{'#' * bool(anchor)}{anchor})"


def _title(path: str, to: str) -> str:
    """Of the page that a page of the repository links to."""
    return (ROOT / posixpath.dirname(path) / to).read_text().partition("\n")[0].removeprefix("# ")


def _packages() -> list[tuple[str, str]]:
    """Names and titles of the pages of the API reference."""
    return [
        ("modules", ", ".join(ALONE)),
        *((p.parent.name, p.parent.name) for p in sorted(SOURCE.glob("*/__init__.py"))),
    ]


def _package_page(name: str) -> str:
    if name == "modules":
        modules, about = list(ALONE), ""
    else:
        about = ast.get_docstring(ast.parse((SOURCE / name / "__init__.py").read_text())) or ""
        files = (path.relative_to(SOURCE).with_suffix("") for path in sorted((SOURCE / name).rglob("*.py")))
        modules = [".".join(path.parts) for path in files if path.name != "__init__"]
    title = dict(_packages())[name]
    return f"# {title}\n\n{about}\n\n" + "\n".join(f"::: draftopd.{module}\n" for module in modules)


def _public() -> dict[str, tuple[str, ...]]:
    """The names of `import draftopd`, by their homes."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    homes = next(n for n in ast.walk(tree) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "_HOMES")
    return dict(ast.literal_eval(homes.value))
