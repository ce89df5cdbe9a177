"""``monai-ssl new-method``: the files of a method that trains at once, to be changed into yours."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

import monai_ssl
from monai_ssl.errors import DataError
from monai_ssl.files import write_text

SCAFFOLD = Path(__file__).parent / "scaffold"


def new_method(name: str, output: str | Path | None = None, title: str | None = None) -> list[Path]:
    """Write a method with its bundle, page and test: entropy minimization, which passes all tests, to start from.

    In a clone of the repository the files go where the other methods are; anywhere else, or with OUTPUT, into a folder
    of their own, which is a complete bundle.

    Args:
        name: short name in lower case, by which the command line will know the bundle: mean_teacher.
        output: new folder for a separate bundle; default: the clone, or ./NAME where there is none.
        title: heading of the page; default: from the name.

    Returns:
        the files that are yours to edit.

    Raises:
        DataError: for a name that cannot name a Python module, or that is taken.

    Example:
        >>> new_method("mean_teacher", output="mean_teacher")  # doctest: +SKIP
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise DataError(f"name: must be lower-case letters, digits and _, as in mean_teacher, got {name!r}")
    title = title or name.replace("_", " ").capitalize()
    root = Path(monai_ssl.__file__).parents[1]
    in_clone = output is None and (root / "tests" / "methods" / "method_tester.py").is_file()
    return _in_clone(root, name, title) if in_clone else _alone(Path(output or name).expanduser(), name, title)


def _in_clone(root: Path, name: str, title: str) -> list[Path]:
    from monai_ssl.bundle.render import main as render_all

    module = f"monai_ssl.methods.{name}"
    files = {
        root / "monai_ssl" / "methods" / f"{name}.py": "method.py.j2",
        root / "bundles" / name / "bundle.yaml": "bundle.yaml.j2",
        root / "bundles" / name / "method.md": "method.md.j2",
        root / "tests" / "methods" / f"test_{name}.py": "test_method.py.j2",
    }
    for path in (*files, root / "bundles" / name):
        if path.exists():
            raise DataError(f"name: {path} exists already; choose another name")
    _write(files, name, title, module, "make bundles")
    render_all()
    changes = root / "CHANGELOG.md"
    text = changes.read_text(encoding="utf-8")
    line = f"- Method `{name}`: {title[0].lower()}{title[1:]}.\n"
    write_text(changes, text.replace("### Added\n\n", f"### Added\n\n{line}", 1))
    return [*files, changes]


def _alone(folder: Path, name: str, title: str) -> list[Path]:
    from monai_ssl.bundle.render import OWN_HEAD, RENDER_OWN, write_bundle

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"output: {folder} exists and is not an empty folder; give a new one")
    files = {
        folder / f"{name}.py": "method.py.j2",
        folder / "bundle.yaml": "bundle.yaml.j2",
        folder / "method.md": "method.md.j2",
        folder / f"test_{name}.py": "test_alone.py.j2",
    }
    _write(files, name, title, name, RENDER_OWN)
    write_bundle(folder, head=OWN_HEAD)
    return list(files)


def _write(files: dict[Path, str], name: str, title: str, module: str, command: str) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(SCAFFOLD), undefined=StrictUndefined, keep_trailing_newline=True)
    class_name = "".join(part.capitalize() for part in name.split("_"))
    words = {"name": name, "title": title, "class_name": class_name, "module": module, "command": command,
             "target": f"{module}.{class_name}"}  # fmt: skip
    for path, template in files.items():
        write_text(path, environment.get_template(template).render(words))
