"""Files: their sizes, names, docstrings, and what must not stand in them."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import tomllib
from pathlib import Path

import leanseek
from leanseek.errors import UsageError

LARGEST = 600
VAGUE = set("util utils common helper helpers misc base core manager managers tools stuff".split())
# Put together here, so that this file does not hold what it looks for.
HOSTS = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "npm" + "js.org",
    "npm" + "js.com",
    "deb." + "debian.org",
    "download." + "pytorch.org",
    "crates" + ".io",
    "proxy." + "golang.org",
    "con" + "da.anaconda.org",
]
ABSOLUTE = re.compile(r"(?<![\w.~$}\])*-])/(?:" + "|".join(("home", "root", "Users", "work", "mnt", "tmp")) + r")/\w")


def public(names: dict[str, object], module: str) -> list[tuple[str, object]]:
    """Return the classes and functions that a module defines under a name without an underscore."""
    return [
        (name, value)
        for name, value in names.items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module
    ]


def dotted(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def test_no_file_is_long(root, text_files):
    for path in text_files:
        if path.suffix in (".py", ".js", ".css"):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            assert lines <= LARGEST, f"{path.relative_to(root)} has {lines} lines; {LARGEST} is the most"


def test_names_say_what_is_inside(root, text_files):
    for path in text_files:
        parts = path.relative_to(root).parts
        words = {part.removesuffix(path.suffix).removeprefix("test_").lower() for part in parts if part != path.name}
        words |= {path.stem.removeprefix("test_").lower()}
        assert not words & VAGUE, f"{path.relative_to(root)}: a name that says nothing"


def test_the_package_is_not_deep(root, modules):
    for path in modules:
        assert len(path.relative_to(root / "leanseek").parts) <= 3, path


def test_every_folder_of_the_package_is_a_package(root, modules):
    for path in modules:
        assert (path.parent / "__init__.py").is_file(), path.parent


def test_every_module_says_in_its_first_line_what_it_is(root, modules):
    for path in modules:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring and docstring.splitlines()[0].strip(), f"{path.relative_to(root)} has no docstring"


def test_only_the_front_door_has_code_in_its_init(root, modules):
    for path in modules:
        if path.name == "__init__.py" and path.parent != root / "leanseek":
            (only,) = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant), path


def test_every_public_name_has_a_docstring(root, modules):
    lacking = []
    for path in modules:
        if path.name == "__main__.py":
            continue
        name = dotted(path, root)
        try:
            module = importlib.import_module(name)
        except UsageError as error:  # it is of an extra that is not installed
            assert "pip install 'leanseek[" in str(error), name
            continue
        for member, value in public(vars(module), name):
            if not value.__doc__:
                lacking.append(f"{name}.{member}")
            if inspect.isclass(value):
                # A method that overrides one with a docstring may leave it to that one.
                methods = {k: v for k, v in vars(value).items() if inspect.isfunction(v) or isinstance(v, property)}
                methods |= {k: v.__func__ for k, v in vars(value).items() if isinstance(v, classmethod | staticmethod)}
                for method in methods:
                    if not method.startswith("_") and not inspect.getdoc(getattr(value, method)):
                        lacking.append(f"{name}.{member}.{method}")
    assert not lacking, f"no docstring: {', '.join(lacking)}"


def test_dataclasses_have_a_docstring_of_their_own(root, modules):
    """Python makes one from the signature where none was written."""
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.relative_to(root)}: {node.name}"


def test_the_front_doors_all_is_exact(root):
    tree = ast.parse((root / "leanseek" / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("leanseek")
        for alias in node.names
    }
    assert set(leanseek.__all__) == imported and len(leanseek.__all__) == len(imported)


def test_nothing_names_a_registry_or_a_place_on_one_machine(root, text_files):
    for path in text_files:
        text = path.read_text(encoding="utf-8")
        for host in HOSTS:
            assert host not in text, f"{path.relative_to(root)} names {host}"
        found = ABSOLUTE.search(text)
        assert found is None, f"{path.relative_to(root)} has an absolute path: {found and found[0]}"


def test_the_rule_on_absolute_paths_finds_some_and_spares_others():
    for text in ("open('" + "/home" + "/ann/x')", "cd " + "/work" + "/main", '"' + "/tmp" + '/x"'):
        assert ABSOLUTE.search(text)
    for text in ("../home/page", "runs/work/x", "{root}/work/x", "/proc/cpuinfo", "$HOME/work/x", "https://a.b/home/x"):
        assert not ABSOLUTE.search(text)


def test_what_every_project_has_is_there(root):
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "Makefile", "pyproject.toml"):
        assert (root / name).is_file() and (root / name).read_text(encoding="utf-8").strip(), (
            f"{name} is missing or empty"
        )


def test_dependencies_are_declared(root, modules):
    """Whatever the package imports from elsewhere stands in pyproject.toml, and nothing else does."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=\[ ]", item)[0].replace("-", "_") for item in project["dependencies"]}
    extras = {re.split(r"[<>=\[ ]", item)[0].replace("-", "_") for item in project["optional-dependencies"]["gpu"]}
    extras |= {
        re.split(r"[<>=\[ ]", item)[0]
        for extra in ("gguf", "cluster", "tensorboard", "trackio", "wandb")
        for item in project["optional-dependencies"][extra]
    }
    imported = set()
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            imported |= {name.split(".")[0] for name in names}
    outside = imported - set(sys.stdlib_module_names) - {"leanseek"}
    extras |= {re.split(r"[<>=\[ ]", item)[0] for item in project["optional-dependencies"]["worlds"]}
    trackers = {"tensorboard", "trackio", "wandb"}  # torch imports the first
    assert extras == {"nvidia_ml_py", "gguf", "ray", "mujoco", "pillow"} | trackers
    known = declared | trackers | {"pynvml", "gguf", "ray", "mujoco", "PIL", "pydantic_core"}  # by their modules' names
    assert outside <= known, f"not declared: {outside - known}"
    # safetensors needs numpy to write torch's tensors, and does not bring it along; uvicorn loads uvloop by its name
    indirect = {"numpy", "uvloop"}
    assert declared <= outside | indirect, f"declared, never imported: {declared - outside}"
