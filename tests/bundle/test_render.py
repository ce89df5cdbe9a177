"""Rendered bundles are what their sources say, and nothing else lies beside them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from pydoc import locate

import pytest
import yaml

from monai_ssl.bundle.library import available_bundles, bundles_root, copy_bundle
from monai_ssl.bundle.render import COMMENTS, HEAD, TEMPLATE, methods_table, place, render_bundle
from monai_ssl.bundle.spec import PAGE, SPEC, read_spec
from monai_ssl.errors import DataError

ROOT = Path(__file__).parents[2]
NAMES = available_bundles()


@pytest.mark.parametrize("name", NAMES)
class TestShipped:
    def test_is_rendered_to_the_byte(self, name):
        folder = bundles_root() / name
        rendered = render_bundle(folder)
        stale = [file for file, text in rendered.items() if (folder / file).read_bytes() != text.encode()]
        assert stale == [], "edit bundle.yaml, method.md or the template, then `make bundles`"

    def test_holds_nothing_else(self, name):
        # a file that the template lost would stay, and be shipped
        folder = f"bundles/{name}"
        tracked = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True).stdout.split()
        if not tracked:
            pytest.skip("no clone")
        known = {*render_bundle(bundles_root() / name), SPEC, PAGE}
        assert {file.removeprefix(f"{folder}/") for file in tracked} <= known

    def test_source_is_short(self, name):
        assert len((bundles_root() / name / SPEC).read_text().splitlines()) <= 50

    def test_first_line_says_where_it_comes_from(self, name):
        for file, text in render_bundle(bundles_root() / name).items():
            if Path(file).suffix in COMMENTS:
                assert HEAD in text.splitlines()[0], file

    def test_says_what_its_class_says_of_unlabeled_images(self, name):
        target = yaml.safe_load((bundles_root() / name / SPEC).read_text())["method"]["_target_"]
        assert read_spec(bundles_root() / name).unlabeled == locate(target).uses_unlabeled

    def test_comments_survive(self, name):
        source = (bundles_root() / name / SPEC).read_text().splitlines()
        config = render_bundle(bundles_root() / name)["configs/train.yaml"].splitlines()
        commented = [line for line in source if line.startswith(" ") and "  # " in line]
        assert [line for line in commented if line not in config] == []

    def test_copy_for_editing_is_complete_and_says_nothing_of_rendering(self, name, tmp_path):
        copy = copy_bundle(name, tmp_path / "mine")
        files = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
        assert files == {file for file in render_bundle(bundles_root() / name) if not file.endswith(".gitkeep")}
        assert (copy / "models").is_dir()
        for file in files:
            first, rest = (copy / file).read_text().split("\n", 1)
            assert "endered" not in first, file
            if Path(file).suffix in COMMENTS:
                assert "yours to edit" in first
                assert rest == (bundles_root() / name / file).read_text().split("\n", 1)[1]


def test_table_of_methods_in_the_readme_is_rendered():
    text = (ROOT / "README.md").read_text()
    assert place(text, "methods", methods_table(bundles_root() / name for name in NAMES)) == text


def test_template_has_no_license_of_its_own():
    # the texts differ in the scheme of two addresses
    ours, theirs = ((folder / "LICENSE").read_text().replace("http://", "https://") for folder in (TEMPLATE, ROOT))
    assert ours == theirs


class TestOwnBundle:
    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "mine"
        folder.mkdir()
        for file in (SPEC, PAGE):
            (folder / file).write_text((bundles_root() / "dtc" / file).read_text())
        return folder

    def change(self, folder, **changes):
        content = yaml.safe_load((folder / SPEC).read_text()) | changes
        (folder / SPEC).write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"titel": "x"}, "titel: Extra inputs"),
            ({"title": None}, "title: Field required"),
            ({"network": {"n_classes": 2, "_target_": "x"}}, "network: the first line must be `_target_:`"),
            ({"references": "one"}, "references: Input should be a valid list"),
        ],
    )
    def test_mistakes_are_named(self, folder, changes, message):
        self.change(folder, **changes)
        with pytest.raises(DataError, match=message):
            render_bundle(folder)

    def test_missing_page_is_named(self, folder):
        (folder / PAGE).unlink()
        with pytest.raises(DataError, match=r"method\.md: cannot be read"):
            render_bundle(folder)

    def test_special_characters_arrive(self, folder):
        text = 'says "no" & <b> \\alpha ä {{ x }}'
        self.change(folder, description=text)
        rendered = render_bundle(folder)
        assert yaml.safe_load(rendered["configs/metadata.json"])["description"] == text

    def test_own_rows_and_points_replace_shared_ones(self, folder):
        page = (folder / PAGE).read_text()
        assert "`--learning_rate`" not in page
        page = page.replace("|---|---|---|\n", "|---|---|---|\n| `--learning_rate` | 1 | mine |\n", 1)
        (folder / PAGE).write_text(page.replace("## When it fails\n\n", "## When it fails\n\n- **NaN.** Mine.\n"))
        readme = render_bundle(folder)["docs/README.md"]
        assert readme.count("| `--learning_rate` |") == 1
        assert "| `--learning_rate` | 1 | mine |" in readme
        assert readme.count("**NaN.**") == 1

    def test_spec_names_the_folder(self, folder):
        assert read_spec(folder).name == "mine"
        assert "# Dual-task consistency (`mine`)" in render_bundle(folder)["docs/README.md"]
