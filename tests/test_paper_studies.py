"""The studies of the five papers: files that say what exists, numbers that can be, a page that lists all of them."""

from pathlib import Path

import pytest
import yaml

from monai_ssl.bundle.library import available_bundles, find_bundle
from monai_ssl.bundle.overrides import check_overrides, merged_config
from monai_ssl.data import load_preset, training_protocol
from monai_ssl.errors import DataError
from monai_ssl.reports.study.quoted import jaccard_check, read_quoted
from monai_ssl.runs.study.plan import check_options
from monai_ssl.runs.study.settings import checked, read_study

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "studies" / "papers"
STUDIES = sorted(FOLDER.glob("*.yaml"))
QUOTED = sorted((FOLDER / "quoted").glob("*.yaml"))
TABLES = {
    "dtc": ["table1", "table2", "table3", "figure4"],
    "ugmcl": ["table1", "table2", "table3", "table4", "table4_released", "figure3"],
    "ssnet": ["table1", "table2", "table3"],
    "tac": [*(f"table{i}" for i in range(1, 9)), "figure7", "figure8"],
    "caml": ["table1", "table2"],
}
FLOOR, CEILING = "Supervised, these labels (floor)", "Supervised, all labels (ceiling)"


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def preset_of(data, flavor):
    name = data["dataset"]
    return load_preset(FOLDER / name if name.endswith(".yaml") else name, flavor)


def test_every_table_has_a_study():
    assert {path.stem for path in STUDIES} == {
        f"{paper}_{table}" for paper, tables in TABLES.items() for table in tables
    }


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
class TestStudy:
    def test_data_are_published(self, path):
        study = read(path)
        assert study["section"] == "testing"
        for flavor in study["flavors"]:
            (preset,) = (preset_of(data, flavor) for data in study["data"].values())
            assert preset.published or flavor == "released"  # UG-MCL's code, whose protocol is the preset's
            assert preset.training.amp == "off"
            assert [preset.name] == list(study["data"])  # quoted figures find their rows by it

    def test_methods_and_options_exist(self, path):
        study = read(path)
        for row, given in study["methods"].items():
            name = given.get("method", row)
            check_overrides(find_bundle(name), ["train.yaml"], given.get("options", {}))
        homes = [find_bundle(name) for name in available_bundles()]
        for key, value in study.get("options", {}).items():
            assert any(_fits(home, key, value) for home in homes), key

    def test_all_rows_are_scored_alike(self, path):
        """The largest component is kept in SS-Net's tables on the left atrium, as the paper says, and in no other."""
        study = read(path)
        (data,) = study["data"].values()
        dataset = str(FOLDER / data["dataset"]) if data["dataset"].endswith(".yaml") else data["dataset"]
        rows = [(given.get("method", row), given.get("options", {})) for row, given in study["methods"].items()]
        if "floor" in study["references"]:
            rows.append(("supervised", {}))
        for flavor in study["flavors"]:
            for name, options in rows:
                literature = merged_config(find_bundle(name), ["train.yaml"], options).get("literature")
                kept = load_preset(dataset, flavor, literature).largest_component
                assert kept == (path.stem in ("ssnet_table1", "ssnet_table3")), name

    def test_rows_of_one_papers_table_share_a_schedule(self, path):
        """The supervised rows as well: a difference from them is that of the method."""
        study = read(path)
        found = set()
        rows = {**study["methods"], **({"supervised": {}} if study["references"] else {})}
        for row, given in rows.items():
            home = find_bundle(given.get("method", row))
            options = {**study.get("options", {}), **given.get("options", {})}
            literature = merged_config(home, ["train.yaml"], given.get("options", {})).get("literature")
            (preset,) = (preset_of(data, study["flavors"][0]) for data in study["data"].values())
            protocol = training_protocol(preset, literature)
            length = options.get("max_iterations", protocol.max_iterations)
            found.add((length, options.get("lr_scheduler#schedule", protocol.schedule)))
        assert len(found) == 1

    def test_titles_are_those_of_the_quoted_lines(self, path):
        study = read(path)
        if "quoted" not in study:
            return
        titles = {given["title"] for given in study["methods"].values()}
        references = {"floor": FLOOR, "ceiling": CEILING}
        titles |= {references[name] for name in study["references"]}
        figures = read(FOLDER / study["quoted"])["figures"]
        quoted = {figure["title"] for figure in figures}
        assert quoted - titles <= {"DUWM"}  # has no code
        counts = {figure["n_labeled"] for figure in figures if figure.get("role") != "ceiling"}
        assert counts == set(study["labels"])

    def test_study_engine_reads_it(self, path, monkeypatch):
        monkeypatch.setenv("MONAI_SSL_DATA", "data")
        study = checked(read_study(path), path.name)
        check_options(study)
        assert list(study.methods) == list(read(path)["methods"])

    def test_page_shows_it(self, path):
        page = (ROOT / "docs" / "results" / "papers.md").read_text(encoding="utf-8")
        section = page.split(f"monai-ssl compare benchmarks/studies/papers/{path.name}\n```")[1].split("\n###")[0]
        study = read(path)
        for given in study["methods"].values():
            assert f"| {given['title']} " in section
        for figure in read(FOLDER / study["quoted"])["figures"] if "quoted" in study else ():
            lines = [line for line in section.splitlines() if line.startswith(f"| {figure['title']}")]
            count = f"| {figure['n_labeled']} + {figure['n_unlabeled']} |"
            assert any(count in line and f"{figure['dice']:.2f}" in line for line in lines), figure
        splits, seeds = study.get("splits", {}).get("number", 1), len(study.get("seeds", [0]))
        rows = len(study["labels"]) * (len(study["methods"]) + ("floor" in study["references"]))
        assert f"\n{splits * seeds * (rows + ('ceiling' in study['references']))} trainings." in section


@pytest.mark.parametrize("path", sorted(FOLDER.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_other_studies_can_be_read(path, monkeypatch):
    monkeypatch.setenv("MONAI_SSL_DATA", "data")
    check_options(checked(read_study(path), path.name))


def test_field_as_published_is_that_of_the_full_size():
    """`la_field_literature.yaml` says what the methods say of the left atrium, as shares of a shorter run."""
    study = read(FOLDER.parent / "la_field_literature.yaml")
    assert study["options"] == {"amp": "off"}
    full = load_preset("left_atrium", "literature")
    quarter = load_preset(FOLDER.parent / study["data"]["la_quarter"]["dataset"], "literature").training
    for name, given in study["methods"].items():
        options = given.get("options", {})
        literature = merged_config(find_bundle(name), ["train.yaml"], {}).get("literature")
        published = training_protocol(full, literature)
        assert options.get("lr_scheduler#schedule", quarter.schedule) == published.schedule, name
        if published.schedule == "step":
            shares = [m if m <= 1 else m / published.max_iterations for m in published.milestones]
            assert options.get("lr_scheduler#milestones", quarter.milestones) == pytest.approx(shares), name
        sizes = [options.get(f"{kind}labeled_batch_size", getattr(quarter, f"{kind}labeled_batch_size"))
                 for kind in ("", "un")]  # fmt: skip
        assert sizes == [published.labeled_batch_size, published.unlabeled_batch_size], name
        ramp = literature["left_atrium"].get("ramp", published.max_iterations) / published.max_iterations
        assert options.get("ramp_iterations", quarter.max_iterations) / quarter.max_iterations == ramp, name


def _fits(home, key, value):
    try:
        check_overrides(home, ["train.yaml"], {key: value})
    except DataError:
        return False
    return True


@pytest.mark.parametrize("path", QUOTED, ids=lambda path: path.stem)
def test_quoted_numbers_can_be(path):
    impossible = {("dtc_table3", FLOOR), ("dtc_table3", CEILING)}  # as printed; the page says so
    for figure in read_quoted(path):
        assert jaccard_check(figure).startswith("impossible") == ((path.stem, figure.title) in impossible), figure
        if figure.hd95 is not None:
            assert figure.hd95 > figure.asd > 0


def test_largest_component_is_all_that_the_preset_of_ss_net_changes():
    ours = load_preset(FOLDER / "presets" / "left_atrium_largest.yaml")
    assert ours == load_preset("left_atrium", "literature", largest_component=True)
