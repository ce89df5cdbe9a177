"""The rooms of the package and who may import whom: read from the source, imports inside functions included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import monai_ssl

PACKAGE = Path(monai_ssl.__file__).parent
# every room imports rooms of lower layers only (and itself)
LAYERS = (
    ("cli",),
    ("deploy",),
    ("handlers",),
    ("runs",),
    ("engines", "curation", "reports"),
    ("methods", "data", "bundle", "metrics"),
    ("losses", "transforms"),
    ("networks",),
    ("weights", "dicom", "mistakes"),
    ("errors", "files", "distributed", "interrupts", "labels", "machine", "progress", "_lazy"),
)
LEVEL = {room: len(LAYERS) - number for number, rooms in enumerate(LAYERS) for room in rooms}
# the package itself (its version, its folder) and `python -m monai_ssl`
DOORS = {"__init__", "__main__"}


@cache
def modules() -> dict[str, ast.Module]:
    """Dotted name -> syntax tree of every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def room(module: str) -> str:
    return module.split(".")[1]


def is_package(module: str) -> bool:
    return (PACKAGE.parent / Path(*module.split("."))).is_dir()


def imported(module: str, node: ast.AST) -> Iterator[str]:
    """Modules of this package that a statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = module.split(".") if is_package(module) else module.split(".")[:-1]
            above = above[: len(above) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base for alias in node.names]
    else:
        return
    yield from (name for name in names if name.startswith("monai_ssl."))


def without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, except what only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                yield other
                yield from without_type_checking(other)
        else:
            yield node
            yield from without_type_checking(node)


@cache
def edges() -> frozenset[tuple[str, str]]:
    """Pairs (module, module that it imports)."""
    found = set()
    for module, tree in modules().items():
        if room(module) in DOORS:
            continue
        for node in without_type_checking(tree):
            found |= {(module, target) for target in imported(module, node) if target != module}
    return frozenset(found)


def lines(module: str) -> int:
    path = PACKAGE.parent / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return len(path.read_text(encoding="utf-8").splitlines())


def test_every_room_has_its_layer():
    assert {room(module) for module in modules()} - DOORS == set(LEVEL)


def test_imports_go_one_way():
    wrong = {
        f"{module} imports {target}"
        for module, target in edges()
        if room(module) != room(target) and LEVEL[room(target)] >= LEVEL[room(module)]
    }
    assert not wrong


def test_there_is_no_circle():
    targets: dict[str, set[str]] = {}
    for module, target in edges():
        targets.setdefault(module, set()).add(target)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(targets.get(module, ())):
                visit(target, (*path, module))
            done.add(module)

    for module in sorted(targets):
        visit(module, ())


def test_a_type_checker_sees_no_other_direction():
    """What only a type checker reads may look up to a sibling, never to a higher layer."""
    wrong = set()
    for module, tree in modules().items():
        if room(module) in DOORS:
            continue
        for node in ast.walk(tree):
            for target in imported(module, node):
                if LEVEL[room(target)] > LEVEL[room(module)]:
                    wrong.add(f"{module} imports {target}")
    assert not wrong


def test_no_room_is_a_house():
    sizes: dict[str, int] = {}
    for module in modules():
        sizes[room(module)] = sizes.get(room(module), 0) + lines(module)
    largest = max(sizes, key=sizes.__getitem__)
    assert sizes[largest] < sum(sizes.values()) / 5, f"{largest}: {sizes[largest]} of {sum(sizes.values())} lines"


def test_the_command_line_is_in_small_files():
    sizes = {module: lines(module) for module in modules() if room(module) == "cli"}
    assert len(sizes) > 4
    assert max(sizes.values()) <= 320, sizes


def test_methods_read_like_their_papers():
    """Memory tricks are the networks' own affair."""
    tricks = {
        f"{module} imports {target}"
        for module, target in edges()
        if room(module) == "methods" and (".recompute" in target or target.endswith(".lean"))
    }
    assert not tricks


def test_methods_share_code_instead_of_repeating_it():
    """Four lines in a row of two methods' functions; signatures and docstrings do not count."""
    seen: dict[tuple[str, ...], set[str]] = {}
    for path in sorted((PACKAGE / "methods").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        for function in ast.walk(ast.parse(source)):
            if isinstance(function, ast.FunctionDef):
                body = function.body[1:] if ast.get_docstring(function) else function.body
                rows = source.splitlines()[body[0].lineno - 1 : body[-1].end_lineno] if body else []
                code = [row.strip() for row in rows if row.strip(" ()[]{},")]
                for i in range(len(code) - 3):
                    seen.setdefault(tuple(code[i : i + 4]), set()).add(path.name)
    assert len(seen) > 200
    assert not {run: names for run, names in seen.items() if len(names) > 1}


def test_importing_changes_no_environment():
    """Statements that an import runs; functions are another matter."""

    def at_import(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            yield node
            for _, value in ast.iter_fields(node):
                if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                    yield from at_import(value)

    changing = {"setdefault", "update", "pop", "putenv", "unsetenv", "clear"}
    for module, tree in modules().items():
        for node in at_import(tree.body):
            for part in ast.walk(node) if not isinstance(node, ast.ClassDef) else ():
                text = ast.unparse(part) if isinstance(part, (ast.Call, ast.Assign, ast.AugAssign, ast.Delete)) else ""
                if isinstance(part, ast.Call):
                    changes = text.startswith(("os.putenv", "os.unsetenv")) or (
                        text.startswith("os.environ.") and text.split(".")[2].split("(")[0] in changing
                    )
                else:
                    changes = text.removeprefix("del ").startswith("os.environ[")
                assert not changes, f"{module}, line {part.lineno}: {text}"


def test_the_rules_see_what_they_forbid(tmp_path):
    """A rule that can find nothing proves nothing."""
    tree = ast.parse("from ..data import preset\ndef f():\n    import monai_ssl.cli.dispatch\n")
    found = {
        target for node in without_type_checking(tree) for target in imported("monai_ssl.losses.consistency", node)
    }
    assert found == {"monai_ssl.data.preset", "monai_ssl.cli.dispatch"}
    assert ("monai_ssl.runs.train", "monai_ssl.curation.verify") in edges()  # inside a function
