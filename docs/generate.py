"""Write the generated pages of the documentation anew: docs/map.md. `make docs` runs it."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from leanseek.cost.published import table

PACKAGE = "leanseek"
HEAD = """\
# Map: every file of the package

Written by `docs/generate.py` from the files' own first lines and imports; `make docs` writes it anew.
A layer imports only what stands below it (the contract in `pyproject.toml`, kept by
`tests/project/test_layers.py`); parts side by side in one heading never import each other.
The last column is what a file imports: names with a dot are files of its own folder.
To read the code in an order that tells a story, take the [tour](tour.md).
"""


def layers(root: Path) -> list[list[str]]:
    """Return the layers of import-linter's contract, the uppermost first, each with its parts."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (contract,) = [one for one in contracts if one["type"] == "layers"]
    return [[part.strip() for part in layer.split("|")] for layer in contract["layers"]]


def modules(root: Path) -> dict[str, Path]:
    """Return every module of the package by its dotted name; a package goes by its folder's."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def own_files(root: Path, folder: str) -> list[Path]:
    """Return a folder's files without those that git ignores, as what a build leaves; all, where there is no git."""
    command = ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard", folder]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        found = [root / name for name in listed]
    except (OSError, subprocess.CalledProcessError):
        found = [*(root / folder).rglob("*")]
    return sorted(path for path in found if path.is_file())


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def imported(path: Path, known: dict[str, Path]) -> list[str]:
    """Return the package's modules that a file imports when it runs, sorted."""
    names: set[str] = set()
    for node in _run_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from leanseek import variables` names a module, `from leanseek.files import write_json` does not.
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inside & known.keys()) or {node.module}
    return sorted(names & known.keys() - {PACKAGE})


def map_page(root: Path) -> str:
    """Return docs/map.md as the package is now."""
    known = modules(root)
    lines = [HEAD, "## Front doors", "", *_table([PACKAGE, f"{PACKAGE}.__main__"], known, root), ""]
    for layer in layers(root):
        lines += [f"## {' | '.join(layer)}", ""]
        names = [f"{PACKAGE}.{part}" for part in layer]
        for name in names:
            if known[name].name == "__init__.py":
                # The folder's own sentence, then a row for each file in it.
                lines += [f"**{name.removeprefix(PACKAGE + '.')}/**: {first_line(known[name])}", ""]
                inside = [n for n in known if n.startswith(f"{name}.") and known[n].name != "__init__.py"]
                lines += [*_table(inside, known, root), ""]
        if single := [name for name in names if known[name].name != "__init__.py"]:
            lines += [*_table(single, known, root), ""]
    return "\n".join([*lines, "## Beside the code", "", *_data(root)]) + "\n"


def _table(names: list[str], known: dict[str, Path], root: Path) -> list[str]:
    rows = ["| file | what it is | imports |", "|---|---|---|"]
    for name in names:
        path = known[name].relative_to(root)
        uses = ", ".join(_short(other, name) for other in imported(known[name], known)) or "-"
        what = first_line(known[name]).replace("|", "\\|")
        rows.append(f"| [`{path.relative_to(PACKAGE)}`](../{path}) | {what} | {uses} |")
    return rows


def _short(other: str, importer: str) -> str:
    """Return how a row names an imported module: `.rows` inside the importer's folder, else `engine.rows`."""
    folder = importer.rpartition(".")[0]
    if folder != PACKAGE and other.startswith(f"{folder}."):
        return other.removeprefix(folder)
    return other.removeprefix(f"{PACKAGE}.")


def _data(root: Path) -> list[str]:
    """Return a line for each folder with files that are not code."""
    folders: dict[Path, list[str]] = {}
    for path in own_files(root, PACKAGE):
        if path.suffix not in (".py", ".pyc") and not path.name.startswith("."):
            folders.setdefault(path.parent.relative_to(root), []).append(path.name)
    return [f"- `{folder}/`: {', '.join(names)}" for folder, names in sorted(folders.items())]


def _run_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a tree, but not what stands under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _run_nodes(node)


def with_table(page: str, name: str, rows: str) -> str:
    """Return a page with the rows between its two marks of a name, in place of what stands there."""
    before, found, rest = page.partition(f"<!-- {name} -->\n")
    _, closed, after = rest.partition(f"\n<!-- /{name} -->")
    if not (found and closed):
        raise ValueError(f"the page has no marks for {name}: <!-- {name} --> and <!-- /{name} -->, each on a line")
    return before + found + rows + closed + after


def main() -> int:
    """Write the pages."""
    root = Path(__file__).resolve().parents[1]
    page = root / "docs" / "map.md"
    page.write_text(map_page(root), encoding="utf-8")
    print(f"wrote {page.relative_to(root)}")
    cost = root / "docs" / "concepts" / "cost.md"
    cost.write_text(with_table(cost.read_text(encoding="utf-8"), "published", table()), encoding="utf-8")
    print(f"wrote the table of {cost.relative_to(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
