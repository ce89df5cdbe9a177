"""The documentation site: ``make site`` writes it to build/site. No network is needed to build or to read it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS), str(DOCS / "_ext")]
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "0")  # nothing is computed here

import monai_ssl  # noqa: E402

project = "monai_ssl"
author = "The monai_ssl authors"
copyright = author
version = release = monai_ssl.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "flowchart",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_ext", "_static", "results/*/FINDINGS.md"]
templates_path: list[str] = []

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_block", "attrs_inline"]
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
# pages written by benchmarks begin lower than a title, and say the same anchor twice
suppress_warnings = ["myst.header", "myst.xref_ambiguous", "ref.python"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_inherit_docstrings = False  # torch's and MONAI's own are in their documentation
autodoc_default_options = {"show-inheritance": True}
# what only other environments have
autodoc_mock_imports = [name for name in ("monailabel", "mlflow") if importlib.util.find_spec(name) is None]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [
    ("Keys", "params_style"),
    ("Call", "notes_style"),
    ("Loss terms", "notes_style"),
    ("Source", "notes_style"),
]

html_theme = "furo"
html_title = f"monai_ssl {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "sidebar_hide_name": False,
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#0b6e6e", "color-brand-content": "#0b6e6e"},
    "dark_css_variables": {"color-brand-primary": "#5cc8c0", "color-brand-content": "#5cc8c0"},
}
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

# Formulas: MathJax from a package of the `docs` extra, copied into the site.
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"chtml": {"mtextInheritFont": True}}


def _copy_mathjax(app: Any, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package sphinx-mathjax-offline is missing: pip install -e '.[docs]'")
    source = Path(spec.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    fonts = Path("output") / "chtml" / "fonts" / "woff-v2"
    (target / fonts).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "tex-chtml.js", target / "tex-chtml.js")
    for font in (source / fonts).iterdir():
        shutil.copyfile(font, target / fonts / font.name)


def _read(app: Any, page: str, source: list[str]) -> None:
    """Pages in the repository link to files that are elsewhere on the site."""
    from generate import links

    path = DOCS / f"{page}.md"
    if path.is_file():
        source[0] = links(source[0], path, path)


def _public_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """A reference to the module that defines a thing leads to the place where it is documented, and back."""
    if node.get("refdomain") != "py" or not node.get("reftarget"):
        return None
    domain = env.get_domain("py")
    for name in _other_names(node["reftarget"]):
        if name in domain.objects:
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, contnode)
    return None


def _other_names(target: str) -> list[str]:
    room = target.rpartition(".")[0]
    names = []
    for depth in (room, room.rpartition(".")[0]):
        if not depth.startswith("monai_ssl"):
            continue
        try:
            thing: Any = importlib.import_module(depth)
            for part in target.removeprefix(depth + ".").split("."):
                thing = getattr(thing, part)
        except (ImportError, AttributeError):
            continue
        home, qualified = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
        if home and qualified:
            names += [f"{home}.{qualified}", f"{'.'.join(home.split('.')[:2])}.{qualified}", f"monai_ssl.{qualified}"]
    return names


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Pydantic's own attributes are no part of a schema's documentation."""
    return True if name in ("model_config", "model_post_init", "model_fields", "model_computed_fields") else None


def _escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Shapes such as (B, C, *spatial) are plain text in docstrings, and emphasis in reStructuredText."""
    start = 0
    for index, line in enumerate(lines):
        if index and re.match(r"\s+\S", line) and re.match(r"(Source|Reference): \S", lines[start]):
            line = lines[index] = line.lstrip()  # a paragraph that is indented from its second line on
        else:
            start = index
        parts = re.split(r"(``.*?``|`[^`]*`)", line)
        parts[::2] = [re.sub(r"(?<=[ (])\*(?=\w+[,)])", r"\\*", part) for part in parts[::2]]
        if not line.lstrip().startswith((">>>", "...")):
            lines[index] = "".join(parts)


def _signature(app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returned: str) -> Any:
    """A module without a constructor of its own shows that of ``torch.nn.Module``."""
    return ("()", returned) if what == "class" and signature == "(*args, **kwargs)" else None


def setup(app: Any) -> None:
    from generate import generate

    generate(DOCS)
    app.connect("source-read", _read)
    app.connect("build-finished", _copy_mathjax)
    app.connect("missing-reference", _public_name)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _escape, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _signature)
