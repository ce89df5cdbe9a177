"""What is said about runs: the answer first, roles by their right names, what makes numbers other than they look."""

from __future__ import annotations

import json

import numpy as np
import pytest

from monai_ssl.metrics import add_meta, case_metrics, read_results, write_results
from monai_ssl.reports import ReportRun, Training, report_run, summary_lines
from monai_ssl.reports.comparison import headline_table
from monai_ssl.reports.findings import answer, findings, missing_references, settings_table, warnings
from monai_ssl.reports.run import WEIGHT, load_runs, overlays_of, role_beside

LABELS = {1: "organ"}


def results(folder, shift=1, n=8, labels=LABELS, spacing=1.0, empty=False, **meta):
    """Results of squares that are ``shift`` voxels off."""
    rows = []
    for index in range(n):
        reference = np.zeros((20, 20), int)
        for value in labels:
            reference[4 * value : 4 * value + 4, 3 : 8 + index] = value
        prediction = np.zeros_like(reference) if empty else np.roll(reference, shift, 1)
        rows += case_metrics(prediction, reference, labels, spacing, f"case{index}")
    write_results(folder, rows, {"section": "testing", **meta})
    return folder


def training(bundle="dtc", weight=None, iteration=None, **record):
    overrides = {"num_workers": 3, "device": "cpu", **record.pop("overrides", {})}
    overrides |= {} if weight is None else {WEIGHT: weight}
    return {"bundle": bundle, "overrides": overrides, "max_iterations": 300, "status": "complete", **record} | (
        {} if iteration is None else {"iteration": iteration}
    )


def loaded(tmp_path, **runs):
    """Runs by role: (shift, record)."""
    return load_runs(
        [
            ReportRun(f"{role} run", results(tmp_path / role, shift), role, training=record and Training.of(record))
            for role, (shift, record) in runs.items()
        ]
    )


class TestAnswer:
    def test_of_a_single_evaluation(self, tmp_path):
        (run,) = loaded(tmp_path, method=(1, None))
        dice = run.summary["mean"]["dice"]
        (sentence,) = findings([run])
        assert sentence.startswith(f"method run: Dice {100 * dice['mean']:.1f} % on 8 cases (median ")
        assert sentence.endswith(", 0 failed.")
        assert "No matched floor is given" in missing_references([run])[0]
        assert (
            missing_references([run])[1] == "No floor (labeled cases only) is given. No ceiling (all labels) is given."
        )

    @pytest.mark.parametrize(
        ("record", "role"),
        [(training("supervised"), "labels only: supervised"), (training(weight=0), "at weight 0: dtc")],
    )
    def test_floors_are_missing_only_where_unlabeled_images_taught_something(self, tmp_path, record, role):
        (run,) = loaded(tmp_path, method=(1, record))
        assert missing_references([run]) == []
        assert headline_table([run]).rows[0][1] == role

    def test_of_one_case(self, tmp_path):
        (run,) = load_runs([ReportRun("dtc", results(tmp_path, n=1))])
        assert answer(run) == f"dtc: Dice {100 * run.rows[0]['dice']:.1f} % on 1 case, 0 failed."

    def test_nothing_drawn(self, tmp_path):
        (run,) = load_runs([ReportRun("dtc", results(tmp_path / "a", empty=True))])
        assert findings([run])[0].endswith("8 failed. Every prediction is empty: the network draws no organ.")
        assert summary_lines(tmp_path / "a")[-1] == "Every prediction is empty: the network draws no organ."
        several = results(tmp_path / "b", labels={1: "a", 2: "b"}, empty=True)
        assert "Every class of every prediction is empty" in summary_lines(several)[-1]

    def test_some_empty_predictions(self, tmp_path):
        rows = (
            read_results(results(tmp_path / "a")).rows[:-1]
            + read_results(results(tmp_path / "b", empty=True)).rows[-1:]
        )
        write_results(tmp_path / "c", rows, {})
        assert summary_lines(tmp_path / "c")[-1] == "One prediction is empty."
        classes = {1: "a", 2: "b"}
        rows = (
            read_results(results(tmp_path / "d", labels=classes)).rows[:-3]
            + read_results(results(tmp_path / "e", labels=classes, empty=True)).rows[-3:]
        )
        write_results(tmp_path / "f", rows, {})
        assert summary_lines(tmp_path / "f")[-1] == "Predictions lack a class that the label has: 3 times."

    def test_runs_without_unlabeled_images(self, tmp_path):
        runs = loaded(tmp_path, floor=(2, None), ceiling=(0, None))
        assert "compares nothing" in missing_references(runs)[0]
        assert [sentence.partition(":")[0] for sentence in findings(runs)] == ["floor run", "ceiling run"]

    def test_of_a_comparison(self, tmp_path):
        runs = loaded(tmp_path, floor=(4, None), matched_floor=(2, None), method=(1, None))
        sentences = findings(runs)
        assert sentences[0].startswith("method run minus matched_floor run: +")
        assert sentences[1].startswith("method run minus floor run: +")
        assert "come with the matched floor" in sentences[2]
        assert sentences[3].startswith("method run: Dice ")
        assert missing_references(runs) == ["No ceiling (all labels) is given."]


class TestWarnings:
    def test_unfinished(self, tmp_path):
        runs = loaded(tmp_path, method=(1, training(status="started", iteration=100)))
        assert warnings(runs) == ["method run is unfinished: weights of iteration 100 of 300."]
        assert warnings(loaded(tmp_path, method=(1, training()))) == []
        # stopped, and nobody knows when
        assert warnings(loaded(tmp_path, method=(1, training(status="started")))) == []

    def test_a_matched_floor_that_does_not_match(self, tmp_path):
        method, matched = training(overrides={"seed": 1}), training(weight=0, max_iterations=200)
        found = warnings(loaded(tmp_path, method=(1, method), matched_floor=(2, matched)))
        assert len(found) == 1
        assert "differ in more than the weight of the unsupervised terms: max_iterations (300 and 200)" in found[0]
        assert "200), seed (1 and default). The difference of their scores is due to all of it." in found[0]

    def test_runs_that_differ_in_the_question_alone(self, tmp_path):
        runs = loaded(
            tmp_path,
            floor=(2, training("supervised", datalist="/a/datalist.json")),
            matched_floor=(2, training(weight=0, datalist="/a/datalist.json")),
            method=(1, training(datalist="/b/datalist.json")),
            ceiling=(0, training("supervised", datalist="/a/all.json")),
        )
        assert warnings(runs) == []
        table = settings_table(runs)
        assert table.header[1:] == ["floor run", "matched_floor run", "method run", "ceiling run"]
        assert table.rows == [
            ["bundle", "supervised", "dtc", "dtc", "supervised"],
            ["datalist", "datalist.json", "datalist.json", "datalist.json", "all.json"],
            [WEIGHT, "default", "0", "default", "default"],
        ]

    def test_another_length_than_the_floor(self, tmp_path):
        runs = loaded(tmp_path, floor=(2, training("supervised", max_iterations=100)), method=(1, training()))
        assert "differ in more than the method: max_iterations (300 and 100)" in warnings(runs)[0]

    def test_what_a_reference_differs_in(self, tmp_path):
        other = training(weight=0.5, overrides={"network_def#base_channels": 8})
        runs = loaded(tmp_path, reference=(2, other), method=(1, training()))
        assert warnings(runs) == [
            f"method run and reference run differ: {WEIGHT} (default and 0.5), network_def#base_channels (default and "
            "8). The difference of their scores is due to all of it."
        ]
        runs = loaded(tmp_path, reference=(2, training("caml")), method=(1, training()))
        assert warnings(runs) == ["method run and reference run differ: bundle (dtc and caml)."]

    @pytest.mark.parametrize(
        ("role", "differing", "said"),
        [
            ("matched_floor", {"preset#spacing": [1, 1, 1]}, "preset#spacing ([2, 2, 2] and [1, 1, 1])"),
            ("matched_floor", {"labeled cases": "8, content b"}, "labeled cases (8, content a and 8, content b)"),
            ("matched_floor", {"unlabeled cases": "9, content d"}, "unlabeled cases (40, content c and 9, content d)"),
            ("matched_floor", {"network_def#_target_": "my.Net"}, "network_def#_target_ (VNet and my.Net)"),
            ("matched_floor", {"method#slope": 3}, "method#slope (1500 and 3)"),
            ("matched_floor", {"learning_rate": 0.1}, "learning_rate (0.01 and 0.1)"),
            ("floor", {"labeled cases": "8, content b"}, "labeled cases (8, content a and 8, content b)"),
            ("floor", {"preset#spacing": [1, 1, 1]}, "preset#spacing ([2, 2, 2] and [1, 1, 1])"),
            ("ceiling", {"learning_rate": 0.1}, "learning_rate (0.01 and 0.1)"),
            # what the question is about
            ("floor", {"unlabeled cases": "0", "unlabeled_batch_size": 0, "network_def#_target_": "Net"}, None),
            ("ceiling", {"labeled cases": "48, content x", "unlabeled cases": "0"}, None),
        ],
    )
    def test_what_the_trainings_came_to_use_is_compared(self, tmp_path, role, differing, said):
        used = {"preset#spacing": [2, 2, 2], "labeled cases": "8, content a", "unlabeled cases": "40, content c",
                "network_def#_target_": "VNet", "method#slope": 1500, "learning_rate": 0.01,
                "unlabeled_batch_size": 2, WEIGHT: 1}  # fmt: skip
        bundle, weight = ("dtc", 0) if role == "matched_floor" else ("supervised", 1)
        theirs = used | differing | {WEIGHT: weight}
        if role != "matched_floor":
            theirs.pop("method#slope", None)
        other = training(bundle, weight=weight, resolved=theirs)
        runs = loaded(tmp_path, method=(1, training(resolved=used)), **{role: (2, other)})
        assert [sentence.partition(": ")[2].rpartition(". ")[0] for sentence in warnings(runs)] == (
            [said] if said else []
        )
        shown = [row[0] for row in settings_table(runs).rows]
        assert set(differing) <= set(shown)
        assert "method#slope" not in set(shown) - set(differing)

    def test_scores_over_mirrored_views_are_not_compared_silently(self, tmp_path):
        one, two = training(), training(weight=0)
        found = warnings(loaded(tmp_path, method=(1, one | {"test_time_augmentation": True}),
                                matched_floor=(2, two | {"test_time_augmentation": False})))  # fmt: skip
        assert "test_time_augmentation (True and False)" in found[0]

    def test_many_differences_are_counted(self, tmp_path):
        one, two = ({f"preset#{k}": value for k in range(12)} for value in (1, 2))
        runs = loaded(tmp_path, method=(1, training(resolved=one)), matched_floor=(2, training(weight=0, resolved=two)))
        assert " and 4 more, in the table of settings. The" in warnings(runs)[0]
        assert len(settings_table(runs).rows) == 13

    def test_nothing_is_said_of_runs_without_a_record(self, tmp_path):
        runs = loaded(tmp_path, floor=(2, None), method=(1, training()))
        assert warnings(runs) == []
        assert settings_table(runs) is None

    def test_what_a_record_does_not_state_is_no_difference(self, tmp_path):
        old = {"bundle": "dtc", "overrides": {}, "flavour": "literature"}  # as version 0.1.0 wrote it
        runs = loaded(
            tmp_path, matched_floor=(2, {**old, "overrides": {WEIGHT: 0}}), method=(1, training(flavor="literature"))
        )
        assert warnings(runs) == []


class TestRoles:
    @pytest.mark.parametrize(
        ("other", "role"),
        [
            (training(weight=0), "matched_floor"),
            (training(weight=0.0), "matched_floor"),
            (training(weight=0.5), "reference"),
            (training("caml", weight=0), "reference"),
            (training("supervised"), "floor"),
            (training("supervised", datalist="all.json"), "reference"),  # more labels, or fewer: nobody knows
            (training("/own/bundle"), "reference"),
        ],
    )
    def test_of_a_run_that_is_compared(self, other, role):
        assert role_beside(Training.of(training()), Training.of(other)) == role

    def test_by_the_number_of_labels(self):
        def run(bundle, n):
            return Training({"bundle": bundle}, n_labeled=n)

        roles = [role_beside(run("dtc", 8), run("supervised", n)) for n in (8, 80, 4)]
        assert roles == ["floor", "ceiling", "reference"]

    def test_matched_floor_on_the_terminal(self, tmp_path):
        folders = [
            results(tmp_path / name / "evaluation-testing", shift) for name, shift in (("dtc", 1), ("dtc-w0", 2))
        ]
        for folder, record in zip(folders, (training(), training(weight=0)), strict=True):
            (folder.parent / "run.json").write_text(json.dumps(record))
        assert summary_lines(*folders)[-1].startswith("dtc minus dtc-w0 (matched floor): +")


class TestRunFromItsFolder:
    def test_name_and_training(self, tmp_path):
        folder = results(tmp_path / "my-run" / "evaluation-testing")
        (tmp_path / "my-run" / "run.json").write_text(json.dumps(training(weight=0)))
        (tmp_path / "my-run" / "training.csv").write_text("iteration,loss\n1,2\n")
        run = report_run(folder, role="matched_floor")
        assert run.name == "dtc at weight 0 (matched floor)"
        assert run.training.iteration == 300
        assert run.training_log.name == "training.csv"
        assert run.validation_log is None

    def test_what_the_results_say_themselves_wins(self, tmp_path):
        folder = results(tmp_path / "my-run" / "evaluation-testing")
        (tmp_path / "my-run" / "run.json").write_text(json.dumps(training()))
        add_meta(folder, training=training("caml", iteration=7))
        assert report_run(folder).name == "caml"
        assert report_run(folder).training.unfinished
        assert len(read_results(folder).rows) == 8

    @pytest.mark.parametrize("content", ["no json", "[]", '{"overrides": {}}'])
    def test_a_damaged_record_is_no_obstacle(self, tmp_path, content):
        folder = results(tmp_path / "my-run" / "evaluation-testing")
        (tmp_path / "my-run" / "run.json").write_text(content)
        assert report_run(folder, role="method").name in ("my-run", "run")

    def test_segmentations_of_another_program(self, tmp_path):
        folder = results(tmp_path / "theirs" / "evaluation", predictions=str(tmp_path / "theirs"))
        assert report_run(folder).name == "theirs"
        assert report_run(folder).training is None

    def test_overlays_of_a_case_with_a_file_per_channel(self, tmp_path):
        for name in ("t1.nii.gz", "t2.nii.gz", "label.nii.gz"):
            (tmp_path / name).touch()
        entry = {"image": ["t1.nii.gz", "t2.nii.gz"], "label": "label.nii.gz"}
        (tmp_path / "datalist.json").write_text(json.dumps({"training": [], "testing": [entry]}))
        folder = tmp_path / "results" / "predictions"
        folder.mkdir(parents=True)
        meta = {"datalist": str(tmp_path / "datalist.json"), "dataset_dir": str(tmp_path), "section": "testing"}
        from monai_ssl.data import load_datalist
        from monai_ssl.data.cases import case_names

        (name,) = case_names(load_datalist(meta["datalist"], tmp_path).testing)
        (folder / f"{name}_seg.nii.gz").touch()
        overlays = overlays_of(tmp_path / "results", meta)
        assert overlays[name].image == str(tmp_path / "t1.nii.gz")


def test_distances_in_voxels_only_where_they_differ(tmp_path):
    (same,) = load_runs([ReportRun("m", results(tmp_path / "a"))])
    (other,) = load_runs([ReportRun("m", results(tmp_path / "b", spacing=1.5))])
    assert [name for name in headline_table([same]).header if "voxel" in name] == []
    assert [name for name in headline_table([other]).header if "voxel" in name] == ["95HD voxel", "ASD voxel"]
    assert len(headline_table([same]).rows[0]) == len(headline_table([same]).header)
