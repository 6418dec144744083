"""The pages about the code: the map is as the code is, and the letter table knows every letter."""

from __future__ import annotations

import json
import re

SHAPED = ("model", "kernels", "engine", "train", "rl", "data", "evals")
SUFFIX = re.compile(r"\b[a-z][a-z_]*_([A-Z1]{1,5})\b")


def test_the_map_is_fresh(root, generate):
    assert (root / "docs" / "map.md").read_text(encoding="utf-8") == generate.map_page(root), "run: make docs"


def test_the_map_has_every_file_once(root, modules):
    page = (root / "docs" / "map.md").read_text(encoding="utf-8")
    for path in modules:
        if path.name != "__init__.py" or path.parent == root / "leanseek":
            assert page.count(f"](../{path.relative_to(root)})") == 1, path


def test_the_layers_stand_in_the_contracts_order(root, generate):
    page = (root / "docs" / "map.md").read_text(encoding="utf-8")
    headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert headings == ["Front doors", *(" | ".join(layer) for layer in generate.layers(root)), "Beside the code"]
    assert headings.index("cli") < headings.index("engine | train") < headings.index("errors")


def test_imports_are_those_that_run(tmp_path, generate):
    path = tmp_path / "module.py"
    path.write_text(
        "import os\n"
        "from typing import TYPE_CHECKING\n"
        "import leanseek\n"
        "from leanseek import units, variables\n"
        "from leanseek.files import write_json\n"
        "if TYPE_CHECKING:\n"
        "    from leanseek.run import Run\n"
        "def late():\n"
        "    import leanseek.log\n"
    )
    names = ("files", "log", "run", "units", "variables")
    known = {f"leanseek.{name}": path for name in names} | {"leanseek": path}
    assert generate.imported(path, known) == ["leanseek.files", "leanseek.log", "leanseek.units", "leanseek.variables"]


def test_the_letter_table_knows_every_letter(root, modules):
    table = (root / "docs" / "shapes.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^\| ([A-Z]) \|", table, flags=re.MULTILINE))
    used: set[str] = set()
    for path in modules:
        if path.relative_to(root / "leanseek").parts[0] in SHAPED:
            used |= set("".join(SUFFIX.findall(path.read_text(encoding="utf-8"))))
    used.discard("1")
    assert {"T", "D", "E"} <= used <= known, f"not in docs/shapes.md: {sorted(used - known)}"


def test_the_letters_are_those_of_the_laptop(root):
    """The table's last column is the preset's config."""
    config = json.loads((root / "leanseek" / "presets" / "laptop.json").read_text(encoding="utf-8"))
    table = (root / "docs" / "shapes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [A-Z] \|[^|]*\| `(\w+)` \| (\w+) \|$", table, flags=re.MULTILINE)
    assert len(rows) >= 10
    for name, value in rows:
        assert value == str("none" if config[name] is None else config[name]), name
