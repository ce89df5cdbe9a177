"""Ranking: every scan of the pool once, no label of it ever, copies and strangers marked."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from commands import TINY, fails, run

import monai_ssl
from monai_ssl.deploy import rank as ranking_module
from monai_ssl.deploy.disagreement import DisagreementScorer

CPU = {"device": "cpu", "amp": "off"}


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "ranking.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A phantom whose pool holds a copy of a labeled scan, one of another pool scan, and pure noise."""
    from monai_ssl.curation.phantom.dataset import write_phantom

    folder = tmp_path_factory.mktemp("pool")
    write_phantom(folder, n_labeled=3, n_unlabeled=10, n_validation=1, n_testing=1, spacing=5.0, progress=False)
    images = folder / "images"
    for source, target in (("labeled_0001", "a_copy"), ("unlabeled_0004", "b_copy")):
        image = nib.load(images / f"{source}.nii.gz")
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 1.5 + 10, image.affine), images / f"{target}.nii.gz")
    image = nib.load(images / "unlabeled_0000.nii.gz")
    noise = np.random.RandomState(0).rand(*image.shape).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, image.affine), images / "stranger.nii.gz")
    lists = json.loads((folder / "datalist.json").read_text())
    lists["unlabeled"] += [{"image": f"images/{name}.nii.gz"} for name in ("a_copy", "b_copy", "stranger")]
    (folder / "datalist.json").write_text(json.dumps(lists))
    runs = []
    for bundle, seed in (("dtc", 0), ("dtc", 1), ("supervised", 0)):
        runs.append(folder.parent / f"{bundle}-{seed}")
        words = [*TINY, "--seed", seed, "--output", runs[-1], "--check", "False"]
        assert run("train", bundle, folder, *words) == 0
    return SimpleNamespace(folder=folder, runs=runs)


@pytest.fixture(scope="module")
def ranked(data):
    return monai_ssl.rank(data.runs[0], **CPU)


class TestTable:
    def test_all_of_the_pool_most_doubtful_first(self, data, ranked):
        rows = table(ranked.folder)
        assert ranked.folder == data.runs[0] / "ranking"
        assert len(rows) == ranked.ranked == 13
        assert [int(row["rank"]) for row in rows] == list(range(1, 14))
        scores = [float(row["score"]) for row in rows]
        assert scores == sorted(scores, reverse=True)
        assert 0 <= scores[-1] <= scores[0] <= 1
        assert ranked.opinions == "method"

    def test_disagreement_is_that_of_active_learning(self, data, ranked):
        from monai_ssl.bundle.library import bundles_root

        settings = {"dataset": str(data.runs[0] / "preset.yaml"), "ckpt": str(data.runs[0] / "model.pt"),
                    "network_def#base_channels": 2, **CPU}  # fmt: skip
        scorer = DisagreementScorer(bundles_root() / "dtc", data.runs[0] / "checkpoint.pt", **settings)
        rows = {row["case"]: row for row in table(ranked.folder)}
        for name in ("unlabeled_0002", "stranger"):
            expected = scorer(data.folder / "images" / f"{name}.nii.gz")
            assert float(rows[name]["disagreement"]) == pytest.approx(expected, abs=1e-4)

    def test_copies_and_strangers_are_marked(self, ranked):
        rows = {row["case"]: row for row in table(ranked.folder)}
        assert rows["a_copy"]["near_duplicate_of"] == rows["a_copy"]["nearest_labeled"] == "labeled_0001"
        pair = [rows["b_copy"], rows["unlabeled_0004"]]
        first, second = sorted(pair, key=lambda row: int(row["rank"]))
        assert (first["near_duplicate_of"], second["near_duplicate_of"]) == ("", first["case"])
        assert [name for name, row in rows.items() if "outlier" in row["mark"]] == ["stranger"]
        assert {name for name, row in rows.items() if row["near_duplicate_of"]} == {"a_copy", second["case"]}
        assert not {"a_copy", second["case"]} & set(ranked.first(13))
        assert len(ranked.first(13)) == 11

    def test_segmentations_are_the_models(self, data, ranked, tmp_path):
        monai_ssl.predict(data.runs[0], data.folder / "images" / "unlabeled_0003.nii.gz", tmp_path, **CPU)
        ours, theirs = (np.asarray(nib.load(folder / "unlabeled_0003_seg.nii.gz").dataobj)
                        for folder in (ranked.folder / "segmentations", tmp_path))  # fmt: skip
        np.testing.assert_array_equal(ours, theirs)
        row = next(row for row in table(ranked.folder) if row["case"] == "unlabeled_0003")
        assert int(row["voxels_1"]) == (ours == 1).sum()

    def test_the_page(self, ranked):
        text = ranked.page.read_text()
        assert f"Annotate first: {', '.join(ranked.first(5))[:20]}" in text
        assert "1 scan of the pool looks unlike every labeled one: stranger" in text
        assert "What this cannot tell" in text
        assert "<script" not in text
        assert text.count("<img") == 4


class TestAgain:
    def test_what_is_done_is_not_done_again(self, data, ranked, monkeypatch):
        before = ranked.table.read_bytes()
        monkeypatch.setattr(DisagreementScorer, "look", lambda *args: pytest.fail("looked again"))
        again = monai_ssl.rank(data.runs[0], **CPU)
        assert again.ranked == 0
        assert again.table.read_bytes() == before

    def test_goes_on_after_a_kill_and_takes_in_new_scans(self, data, ranked, tmp_path, monkeypatch):
        folder = Path(shutil.copytree(ranked.folder, tmp_path / "ranking"))
        lines = (folder / "scans.jsonl").read_text().splitlines(keepends=True)
        (folder / "scans.jsonl").write_text("".join(lines[:8]) + lines[8][:40])  # 3 labeled scans, then 5 of the pool
        (folder / "segmentations" / "unlabeled_0001_seg.nii.gz").unlink()
        looked = []
        look = DisagreementScorer.look
        monkeypatch.setattr(DisagreementScorer, "look", lambda self, image: looked.append(image) or look(self, image))
        again = monai_ssl.rank(data.runs[0], output=folder, **CPU)
        assert again.ranked == len(looked) == 9
        assert again.table.read_bytes() == ranked.table.read_bytes()

    def test_another_model_begins_anew(self, data, ranked, tmp_path):
        folder = Path(shutil.copytree(ranked.folder, tmp_path / "ranking"))
        assert monai_ssl.rank(data.runs[1], output=folder, **CPU).ranked == 13
        assert (tmp_path / "ranking-previous-1" / "ranking.csv").read_bytes() == ranked.table.read_bytes()


class TestWhatIsRanked:
    def test_no_label_of_the_pool_is_opened(self, data, tmp_path, monkeypatch):
        """Neither one in the datalist's folders nor one beside the images."""
        images = tmp_path / "scans"
        (images / "labels").mkdir(parents=True)
        for name in ("unlabeled_0005", "unlabeled_0006"):
            shutil.copy(data.folder / "images" / f"{name}.nii.gz", images)
        import nibabel

        opened = []
        load = nibabel.load
        monkeypatch.setattr(nibabel, "load", lambda file, *a, **k: opened.append(str(file)) or load(file, *a, **k))
        monai_ssl.rank(data.runs[0], images, tmp_path / "out", **CPU)
        assert not [file for file in opened if "/labels/" in file]

    def test_a_folder_without_what_has_a_label_already(self, data, tmp_path):
        found = monai_ssl.rank(data.runs[0], data.folder, tmp_path / "out", **CPU)
        names = {row["case"] for row in found.rows}
        assert names == {*(f"unlabeled_000{k}" for k in range(10)), "a_copy", "b_copy", "stranger"}

    def test_one_opinion(self, data, tmp_path):
        found = monai_ssl.rank(data.runs[2], output=tmp_path / "out", **CPU)
        assert found.opinions == ""
        assert {row["disagreement"] for row in found.rows} == {""}
        values = [float(row["uncertainty"]) for row in found.rows]
        assert values == sorted(values, reverse=True)
        assert "one opinion only" in found.page.read_text()

    def test_several_runs_are_compared_with_one_another(self, data, capsys):
        assert run("rank", *data.runs, "--device", "cpu", "--amp", "off") == 0
        printed = capsys.readouterr().out
        assert "  1. " in printed
        folder = data.runs[0].parent / "ensemble-dtc-0+dtc-1+supervised-0" / "ranking"
        assert str(folder / "ranking.csv") in printed
        assert all(0 < float(row["disagreement"]) < 1 for row in table(folder))

    def test_a_package(self, data, tmp_path, capsys):
        bundle = monai_ssl.package(data.runs[2], tmp_path / "package")
        images = data.folder / "images"
        assert "give IMAGES and --output" in fails(capsys, "rank", bundle)
        found = monai_ssl.rank(bundle, images, tmp_path / "out", dataset_dir=data.folder, **CPU)
        assert len(found.rows) == 13
        assert found.rows[0]["nearest_labeled"].startswith("labeled_")

    def test_what_cannot_be_read_is_named_and_the_others_are_ranked(self, data, tmp_path, capsys):
        images = tmp_path / "scans"
        images.mkdir()
        shutil.copy(data.folder / "images" / "unlabeled_0000.nii.gz", images)
        (images / "broken.nii.gz").write_bytes(b"no scan")
        message = fails(capsys, "rank", data.runs[0], images, "--output", tmp_path / "out", "--device", "cpu")
        assert "1 of 2 scans could not be read: broken" in message
        assert [row["case"] for row in table(tmp_path / "out")] == ["unlabeled_0000"]
        assert "broken could not be read" in (tmp_path / "out" / "ranking.html").read_text()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["{run}", "nowhere"], "images: "),
            (["{run}", "{labels}"], "no unlabeled scan below"),
            (["{run}", "--output", "{run}"], "holds files of something else"),
            (["{run}", "--devise", "cpu"], "devise"),
            (["{labels}"], "holds no run.json"),
        ],
    )
    def test_mistakes(self, data, words, message, capsys):
        places = {"run": data.runs[0], "labels": data.folder / "labels"}
        assert message in fails(capsys, "rank", *(word.format(**places) for word in words))

    def test_a_datalist_without_a_pool(self, data, tmp_path, capsys):
        lists = json.loads((data.folder / "datalist.json").read_text()) | {"unlabeled": []}
        (tmp_path / "none.json").write_text(json.dumps(lists))
        assert "'unlabeled' has no scan" in fails(capsys, "rank", data.runs[0], "--datalist", tmp_path / "none.json")


def test_formulas_do_not_reach_a_spreadsheet():
    row = dict.fromkeys(ranking_module.COLUMNS, "") | {"case": "=1+1", "rank": 1}
    assert "=1+1" not in ranking_module._table([row]).replace("'=1+1", "")
