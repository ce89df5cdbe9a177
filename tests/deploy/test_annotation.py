"""What annotators and their clients send: requests that are only data, labels by the names of their segments."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from monai_ssl.data import Preset
from monai_ssl.data.reading import read_label
from monai_ssl.deploy.annotation.archive import LabelsOnly, is_label
from monai_ssl.deploy.annotation.labels import (
    class_values,
    is_automatic,
    stored_values,
    usable_cases,
    with_class_values,
)
from monai_ssl.deploy.annotation.requests import (
    RequestError,
    inference_request,
    inside,
    plain_name,
    refuse_special,
    training_request,
)
from monai_ssl.errors import DataError

CODE = ["$__import__('os').system('x')", " $x", "@network", "%/etc/passwd", "$[x]"]


class TestRequests:
    @pytest.mark.parametrize("code", CODE)
    @pytest.mark.parametrize(
        "key",
        ["tracking", "tracking_uri", "tracking_run_name", "tracking_experiment_name", "anything", "run_id", "name"],
    )
    def test_what_would_be_evaluated_is_left_out(self, key, code):
        assert training_request({"model": "dtc", "max_epochs": 3, key: code}) == {"model": "dtc", "max_epochs": 3}

    @pytest.mark.parametrize("code", CODE)
    @pytest.mark.parametrize(
        "key", ["model", "device", "gpus", "model_filename", "max_epochs", "val_split", "pretrained"]
    )
    def test_what_is_read_cannot_be_code(self, key, code):
        with pytest.raises(RequestError) as caught:
            training_request({"model": "dtc", key: code})
        assert code not in str(caught.value)

    @pytest.mark.parametrize(
        "name",
        ["../../secret.pt", "/etc/x.pt", "a/b.pt", "a\\b.pt", "model.yaml", "..pt", "", [], None, ["../x.pt"], 3],
    )
    def test_weights_are_named_without_a_folder(self, name):
        with pytest.raises(RequestError, match=r"^model_filename: must be the name of a \.pt file"):
            training_request({"model": "dtc", "model_filename": name})

    def test_what_forms_send_is_read(self, caplog):
        sent = {
            "model": "dtc",
            "device": ["NVIDIA A100-SXM4-40GB", "cpu"],
            "pretrained": True,
            "max_epochs": 50.0,
            "val_split": 0.2,
            "multi_gpu": True,
            "gpus": "all",
            "tracking": ["None", "mlflow"],
            "tracking_uri": "",
            "run_id": "",
            "model_filename": ["model.pt"],
            "local_rank": 0,
            "client_id": "user-xyz",
        }
        found = training_request(sent)
        assert found["device"] == "NVIDIA A100-SXM4-40GB"
        assert found["max_epochs"] == 50
        assert type(found["max_epochs"]) is int
        assert found["model_filename"] == "model.pt"
        assert not {"tracking", "tracking_uri", "run_id", "client_id"} & set(found)
        assert "left out" not in caplog.text  # nobody asked for anything

    def test_a_dropped_option_is_named_without_its_value(self, caplog):
        training_request({"model": "dtc", "tracking_uri": "http://elsewhere/secret"})
        assert "'tracking_uri'" in caplog.text
        assert "secret" not in caplog.text

    def test_a_bundle_may_offer_options_of_its_own(self):
        assert training_request({"model": "m", "alpha": 3}, ("alpha",))["alpha"] == 3
        with pytest.raises(RequestError, match=r"^alpha: a text of a request must not begin with"):
            training_request({"model": "m", "alpha": "$3"}, ("alpha",))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("max_epochs", 0),
            ("max_epochs", True),
            ("max_epochs", "2"),
            ("max_iterations", -1),
            ("max_iterations", 10**12),
            ("val_split", 1),
            ("val_split", float("nan")),
            ("pretrained", "yes"),
            ("gpus", "0;1"),
            ("max_unlabeled", 1.5),
        ],
    )
    def test_ranges(self, key, value):
        with pytest.raises(RequestError, match=f"^{key}: must be"):
            training_request({"model": "dtc", key: value})

    @pytest.mark.parametrize(
        "value", [{"a": {"b": ["x", ["$y"]]}}, {"$a": 1}, ["@x"], ({"a": "%x"},)], ids=["deep", "key", "list", "tuple"]
    )
    def test_nothing_is_too_deep(self, value):
        with pytest.raises(RequestError):
            refuse_special(value, "request")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("result_extension", "/../x.nii"),
            ("result_extension", ".nii/../../x"),
            ("label_tag", "../final"),
            ("label_tag", "a/b"),
            ("result_dtype", "$x"),
            ("anything", {"x": "$y"}),
        ],
    )
    def test_a_segmentation_goes_nowhere_else(self, key, value):
        with pytest.raises(RequestError):
            inference_request({"model": "dtc", "image": "a", key: value})

    def test_usual_inference_requests_pass(self):
        sent = {"model": "dtc", "image": "a", "result_extension": ".nii.gz", "device": "cuda:0", "label_tag": "final"}
        assert inference_request(sent) == sent

    @pytest.mark.parametrize("name", ["a", "case_01", "1.2.840.113", "_x", "Müller 3 (b)", "a+b=c,d"])
    def test_plain_names(self, name):
        assert plain_name(name) == name

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "../a", "a/b", "a\\b", "a/../b", "a..b", "a\nb", "a\0b", ".ssh", "x" * 201]
    )
    def test_names_that_lead_elsewhere(self, name):
        with pytest.raises(RequestError, match=r"^tag: must be a plain name"):
            plain_name(name, "tag")

    def test_inside_follows_links(self, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "secret").write_text("x")
        (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
        (tmp_path / "in" / "file").write_text("x")
        assert inside(tmp_path / "in" / "file", tmp_path / "in", "")
        assert not inside(tmp_path / "in" / "link", tmp_path / "in")
        assert not inside(tmp_path / "in" / ".." / "secret", tmp_path / "in")


PRESET = Preset(name="heart", labels={0: "background", 1: "right ventricle", 2: "LV"}, patch_size=(16, 16, 16))


def segments(*names, idx=None):
    return {"label_info": [{"name": name, **({} if idx is None else {"idx": idx[i]})} for i, name in enumerate(names)]}


class TestNamesDecide:
    @pytest.mark.parametrize(
        ("info", "values"),
        [
            (segments("right ventricle", "LV"), {1: 1, 2: 2}),
            (segments("LV", "right_ventricle"), {1: 2, 2: 1}),
            (segments("LV", "Right Ventricle", idx=[0, 1]), {1: 2, 2: 1}),
            (segments("LV", idx=[0]), {1: 2}),  # the other segment was deleted
            (segments("LV", idx=[2]), {2: 2}),
            (segments("LV", "right ventricle", idx=[1, 2]), {1: 2, 2: 1}),
            (segments("background", "LV", idx=[0, 1]), {1: 0, 2: 2}),
            ({}, None),
            (None, None),
            ({"label_info": []}, None),
            ({"label_info": "LV"}, None),
            (segments("", " "), None),
        ],
    )
    def test_values(self, info, values):
        assert class_values(info, PRESET) == values

    @pytest.mark.parametrize(
        ("info", "message"),
        [
            (segments("LV", "myocardium"), "segment 'myocardium' is no class of the model"),
            (segments("LV", "lv"), "two segments"),
        ],
    )
    def test_names_that_nobody_knows(self, info, message):
        with pytest.raises(DataError, match=message):
            class_values(info, PRESET)

    def test_the_label_is_renumbered_on_its_grid(self, tmp_path):
        array = np.random.RandomState(0).randint(0, 3, (4, 5, 6)).astype(np.uint8)
        affine = np.diag([-1.0, 2, 3, 1])
        nib.save(nib.Nifti1Image(array, affine), tmp_path / "a.nii.gz")
        same = with_class_values(tmp_path / "a.nii.gz", {1: 1, 2: 2}, tmp_path / "new" / "a.nii.gz")
        assert same == tmp_path / "a.nii.gz"
        file = with_class_values(tmp_path / "a.nii.gz", {1: 2, 2: 1}, tmp_path / "new" / "a.nii.gz")
        voxels, found = read_label(file)
        np.testing.assert_array_equal(voxels[0], np.array([0, 2, 1])[array])
        np.testing.assert_array_equal(found, affine)
        with pytest.raises(DataError, match="value 2 in the label belongs to no segment"):
            with_class_values(tmp_path / "a.nii.gz", {1: 2}, tmp_path / "new" / "a.nii.gz")

    @pytest.mark.parametrize(
        ("label_map", "ignore_label"), [({}, None), ({}, 255), ({}, -1), ({255: 1}, 7), ({1: 0, 2: 1, 3: 2}, 0)]
    )
    def test_what_is_written_means_the_same_when_it_is_read(self, tmp_path, label_map, ignore_label):
        preset = Preset(name="heart", labels=PRESET.labels, patch_size=(16, 16, 16), label_map=label_map,
                        ignore_label=ignore_label)  # fmt: skip
        array = np.random.RandomState(0).randint(0, 4, (4, 5, 6)).astype(np.uint8)
        names, classes = ["LV", "right ventricle"], [0, 2, 1, 0]
        if ignore_label is not None:
            names, classes = [*names, "Ignore"], [0, 2, 1, 255]
        array[array >= len(names) + 1] = 0
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
        values = stored_values(class_values(segments(*names), preset), preset)
        file = with_class_values(tmp_path / "a.nii.gz", values, tmp_path / "new" / "a.nii.gz")
        found = read_label(file, preset.label_map, preset.ignore_label)[0][0]
        np.testing.assert_array_equal(found, np.array(classes)[array])

    def test_ignored_segments_need_a_preset_that_ignores(self):
        with pytest.raises(DataError, match="segment 'ignore' is no class of the model"):
            class_values(segments("LV", "ignore"), PRESET)
        preset = Preset(name="x", labels={0: "background", 1: "a"}, label_map={1: 0, 0: 0}, patch_size=(16, 16, 16))
        with pytest.raises(DataError, match="class 1 has no value in label files by the preset's label_map"):
            stored_values({1: 1}, preset)

    @pytest.mark.parametrize(
        ("info", "automatic"),
        [({}, False), (None, False), ({"model": "dtc"}, True), ({"model": "dtc", **segments("LV")}, False)],
    )
    def test_a_model_s_own_mask(self, info, automatic):
        assert is_automatic(info) is automatic


class TestUsableCases:
    @pytest.fixture
    def store(self, tmp_path):
        random = np.random.RandomState(0)

        def write(name, array, dtype=np.float32):
            nib.save(nib.Nifti1Image(array.astype(dtype), np.eye(4)), tmp_path / f"{name}.nii.gz")
            return str(tmp_path / f"{name}.nii.gz")

        label = random.randint(0, 3, (9, 9, 9))
        files = {name: write(name, random.rand(9, 9, 9)) for name in ("a", "b", "c", "d", "e", "pool")}
        good = write("good", label, np.uint8)
        return {
            "a": ("a", files["a"], good, {}),
            "swapped": ("b", files["b"], good, segments("LV", "right ventricle")),
            "shape": ("c", files["c"], write("shape", label[:8], np.uint8), {}),
            "new class": ("d", files["d"], write("new", label + 1, np.uint8), {}),
            "automatic": ("e", files["e"], good, {"model": "dtc", "params": {}}),
            "unknown name": ("e", files["e"], good, segments("aorta", "LV")),
            "pool": ("pool", files["pool"]),
            "broken": ("broken", write("broken", np.full((9, 9, 9), np.nan))),
        }

    def test_one_bad_label_blocks_nothing(self, store, tmp_path, caplog):
        labeled = [store[key] for key in ("a", "swapped", "shape", "new class", "automatic")]
        cases = usable_cases(labeled, [store["pool"], store["broken"]], PRESET, tmp_path / "renumbered")
        assert [entry["image"] for entry in cases.labeled] == [store["a"][1], store["swapped"][1]]
        assert [entry["image"] for entry in cases.unlabeled] == [store["pool"][1]]
        assert set(cases.aside) == {"c", "d", "e", "broken"}
        assert "shape" in cases.aside["c"]
        assert "drawn by a model" in cases.aside["e"]
        np.testing.assert_array_equal(
            read_label(cases.labeled[1]["label"])[0], np.array([0, 2, 1])[read_label(store["a"][2])[0].astype(int)]
        )
        assert "not used: broken: " in caplog.text

    @pytest.mark.parametrize("key", ["shape", "new class", "automatic", "unknown name"])
    def test_the_reason_is_told_where_nothing_is_left(self, store, tmp_path, key):
        with pytest.raises(DataError, match=f"^training needs at least one label that can be used.*{store[key][0]}: "):
            usable_cases([store[key]], [store["pool"]], PRESET, tmp_path / "renumbered")

    def test_no_label_at_all(self, store, tmp_path):
        with pytest.raises(DataError, match="annotate and submit one"):
            usable_cases([], [store["pool"]], PRESET, tmp_path)


def seg(kind, maker, study="1.2", series="1.3"):
    segment = {"00620008": {"vr": "CS", "Value": [kind]}, "00620009": {"vr": "LO", "Value": [maker]}}
    return {
        "0020000D": {"Value": [study]},
        "0020000E": {"Value": [series]},
        "00620002": {"vr": "SQ", "Value": [segment]},
    }


class Archive:
    def __init__(self, *series):
        self.series, self.asked = series, 0

    def search_for_series(self, search_filters=None):
        return list(self.series)

    def retrieve_series_metadata(self, study, series):
        self.asked += 1
        return [entry for entry in self.series if entry["0020000E"]["Value"] == [series]]


class TestArchive:
    @pytest.mark.parametrize(
        ("kind", "maker", "label"),
        [
            ("AUTOMATIC", "dtc", False),
            ("AUTOMATIC", "TotalSegmentator", False),
            ("AUTOMATIC", "MONAILABEL", True),  # what annotators submit through MONAI Label
            ("MANUAL", "", True),
            ("SEMIAUTOMATIC", "ITK-SNAP", True),
        ],
    )
    def test_whose_segmentation_it_is(self, kind, maker, label):
        assert is_label(seg(kind, maker)) is label

    def test_predictions_are_not_found_as_labels(self):
        archive = Archive(seg("AUTOMATIC", "dtc"), seg("MANUAL", "", series="1.4"))
        client = LabelsOnly(archive)
        for _ in range(2):
            found = client.search_for_series(search_filters={"Modality": "SEG"})
            assert [series["0020000E"]["Value"] for series in found] == [["1.4"]]
        assert archive.asked == 2  # each once
        assert len(client.search_for_series(search_filters={"Modality": "MR"})) == 2
        assert client.asked == 2
