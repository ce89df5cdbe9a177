"""Presets: what they say, what they refuse, and what their transforms do to an image."""

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.data import MetaTensor

from monai_ssl.data import DataError, Preset, available_presets, dump_preset, load_preset
from monai_ssl.data.pipelines import (
    postprocessing,
    preprocessing,
    random_transforms,
    training_preprocessing,
    validation_preprocessing,
)
from monai_ssl.data.preset import PRESET_DIR

SMALL = {"patch_size": [16, 16, 16], "labels": {0: "background", 1: "organ"}}


def write_preset(folder, **content):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **content}))
    return path


def write_case(folder, sides=(20, 18, 17), codes="RAS", spacing=(1.0, 1.0, 1.0), seed=0, array=None):
    """An image and a label (bright voxels) in the given orientation; returns the arrays as stored."""
    random = np.random.RandomState(seed)
    image = (random.rand(*sides) * 100 if array is None else array).astype(np.float32)
    orientation = nib.orientations.axcodes2ornt(tuple((codes + "S")[:3]))
    affine = nib.orientations.inv_ornt_aff(orientation, (*sides, 1)[:3]) @ np.diag([*spacing, 1.0])
    label = (image > np.percentile(image, 70)).astype(np.uint8)
    nib.save(nib.Nifti1Image(image, affine), folder / "image.nii.gz")
    nib.save(nib.Nifti1Image(label, affine), folder / "label.nii.gz")
    return {"image": str(folder / "image.nii.gz"), "label": str(folder / "label.nii.gz")}, image, label


# ------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("name", available_presets())
def test_shipped_presets_are_valid_in_every_flavor(name):
    default = load_preset(name)
    assert default.name == name
    assert default.labels[0] == "background"
    flavors = []
    for flavor in ("literature", "practical"):
        try:
            flavors.append(load_preset(name, flavor))
        except DataError:
            continue
        assert flavors[-1].flavor == flavor
    assert default in flavors


def test_published_numbers_of_the_left_atrium():
    preset = load_preset("left_atrium")
    assert preset.flavor == "literature"
    assert preset.patch_size == (112, 112, 80)
    assert preset.window.stride == (18, 18, 4)
    assert preset.window.mode == "constant"
    assert (preset.n_classes, preset.in_channels, preset.spatial_dims) == (2, 1, 3)
    training = preset.training
    assert (training.max_iterations, training.learning_rate, training.momentum) == (6000, 0.01, 0.9)
    assert (training.weight_decay, training.labeled_batch_size, training.unlabeled_batch_size) == (1e-4, 2, 2)
    assert training.schedule == "step"
    assert [round(m * 6000) for m in training.milestones] == [2500, 5000]
    assert preset.augmentation.policy == "literature"
    assert preset.intensity.policy == "as_stored"
    assert not preset.largest_component


def test_published_numbers_of_the_hippocampus():
    """TAC, section IV-A 2 and IV-B."""
    preset = load_preset("hippocampus", "literature")
    assert preset.published
    assert preset.patch_size == (32, 32, 64)
    assert (preset.intensity.policy, preset.augmentation.policy) == ("zscore", "literature")
    assert (preset.training.max_iterations, preset.training.schedule) == (6000, "poly")
    assert (preset.training.labeled_batch_size, preset.training.unlabeled_batch_size) == (2, 2)
    assert load_preset("hippocampus").flavor == "practical"


def test_published_numbers_of_ms_cmr():
    """TAC, section IV-B: z-score, 224 x 224; slices, not stacks, are drawn."""
    preset = load_preset("mscmrseg2019", "literature")
    assert (preset.patch_size, preset.intensity.policy) == ((224, 224), "zscore")
    assert preset.slice_sampling == "slice"
    assert load_preset("mscmrseg2019", "practical").intensity.policy == "robust"


def test_published_numbers_of_brats():
    """UG-MCL, section IV-A and IV-B, and its released code."""
    printed, every, released = (load_preset("brats2019", f) for f in ("literature", "literature_all", "released"))
    for preset in (printed, every):
        assert preset.patch_size == (112, 112, 80)
        assert preset.intensity.policy == "zscore"
        assert (preset.training.max_iterations, preset.training.schedule) == (6000, "step")
    assert released.patch_size == (96, 96, 96)
    assert (released.training.max_iterations, released.training.schedule) == (30000, "constant")
    assert [preset.in_channels for preset in (printed, every, released)] == [1, 4, 1]
    assert {preset.n_classes for preset in (printed, every, released)} == {2}


@pytest.mark.parametrize("name", available_presets())
def test_papers_train_in_float32(name):
    content = yaml.safe_load((PRESET_DIR / f"{name}.yaml").read_text(encoding="utf-8"))
    for flavor in content["flavors"]:
        preset = load_preset(name, flavor)
        assert preset.training.amp == ("off" if preset.published or flavor == "released" else "auto")


def test_amp_as_yaml_reads_it(tmp_path):
    assert load_preset(write_preset(tmp_path, training={"amp": False})).training.amp == "off"
    with pytest.raises(DataError, match=r"training\.amp"):
        load_preset(write_preset(tmp_path, training={"amp": "half"}))


def test_a_paper_may_differ_in_keys_of_the_preset():
    published = {"left_atrium": {"max_iterations": 15000, "preset": {"largest_component": True}}}
    assert load_preset("left_atrium", "literature", published).largest_component
    assert not load_preset("left_atrium", "practical", published).largest_component
    assert not load_preset("acdc", "literature", published).largest_component
    with pytest.raises(DataError, match="largest: unknown key"):
        load_preset("left_atrium", "literature", {"left_atrium": {"preset": {"largest": True}}})


def test_flavors_differ_where_they_say_so():
    literature, practical = load_preset("left_atrium", "literature"), load_preset("left_atrium", "practical")
    assert practical.intensity.policy == "robust"
    assert practical.augmentation.policy == "practical"
    assert practical.patch_size == literature.patch_size


def test_own_file(tmp_path):
    preset = load_preset(write_preset(tmp_path, channels=["T1", "T2"], modality="MR"))
    assert preset.name == "mine"
    assert preset.in_channels == 2
    assert preset.flavor == "practical"


def test_overrides_are_merged():
    preset = load_preset("left_atrium", training={"max_iterations": 7}, modality="CT")
    assert preset.training.max_iterations == 7
    assert preset.training.schedule == "step"
    assert preset.modality == "CT"


@pytest.mark.parametrize("name", available_presets())
def test_written_and_read_again(tmp_path, name):
    preset = load_preset(name)
    (tmp_path / "copy.yaml").write_text(dump_preset(preset))
    assert load_preset(tmp_path / "copy.yaml") == preset


def test_a_preset_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_preset("phantom").patch_size = (1, 1, 1)


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"patch_sise": [1]}, r"mine\.yaml: patch_sise: unknown key; .*Preset"),
        ({"intensity": {"polisy": 1}}, r"intensity\.polisy: unknown key; .*preset\.Intensity"),
        ({"labels": {0: "a", 2: "b"}}, r"labels must be 0 \(background\), 1, .* without gap.*got \[0, 2\]"),
        ({"labels": {0: "a"}}, r"at least two, got \[0\]"),
        ({"patch_size": [16, 16]}, r"patch_size must have 3 entries \(spatial_dims\), got \[16, 16\]"),
        ({"patch_size": [16, 16, 20]}, r"patch_size must be multiples of 16 .* got \[16, 16, 20\]"),
        ({"patch_size": [16, 16, 0]}, r"patch_size must be multiples of 16 .* got \[16, 16, 0\]"),
        ({"spacing": [1.0]}, r"spacing must have 3 entries"),
        ({"window": {"stride": [8, 8]}}, r"window\.stride must have 3 entries, got \[8, 8\]"),
        ({"window": {"overlap": 1.0}}, r"window\.overlap: .*less than 1 \(got 1\.0\)"),
        ({"intensity": {"policy": "window"}}, r"intensity: .*needs intensity\.window: \[low, high\]"),
        ({"intensity": {"policy": "hu"}}, r"intensity\.policy: .*'minmax' or 'window' \(got 'hu'\)"),
        ({"intensity": {"policy": "robust", "window": [0, 1]}}, r"intensity\.window goes with policy 'window' or"),
        ({"intensity": {"policy": "minmax", "nonzero": True}}, r"intensity\.nonzero goes with policy 'robust' or"),
        ({"resize": [32, 32]}, r"resize is for spatial_dims 2 and goes without spacing"),
        ({"center_crop": [100, -1]}, r"center_crop must be positive millimeters or null, .* got \[100\.0, -1\.0\]"),
        ({"spatial_dims": 4}, r"spatial_dims: .*got 4"),
        ({"training": {"max_iterations": 0}}, r"training\.max_iterations: .*got 0"),
        ({"augmentation": {"policy": "literature"}, "patch_size": [16, 32, 16]},
         r"patch_size must be equal along axes \[0, 1\].*got \[16, 32, 16\]"),
        ({"augmentation": {"rotate90_axes": [1, 2]}, "patch_size": [16, 16, 32]},
         r"patch_size must be equal along axes \[1, 2\].*got \[16, 16, 32\]"),
    ],
)  # fmt: skip
def test_rejects(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        load_preset(write_preset(tmp_path, **content))


INFINITE = float("inf")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"spacing": [0, 1, 1]}, r"spacing\.0: .*greater than 0"),
        ({"spacing": [1, -1, 1]}, r"spacing\.1: .*greater than 0 \(got -1\)"),
        ({"spacing": [1, 1, float("nan")]}, r"spacing\.2: .*finite"),
        ({"spacing": [1, 1, INFINITE]}, r"spacing\.2: .*finite"),
        ({"intensity": {"percentiles": [99, 1]}}, r"percentiles must be 0 <= low < high <= 100, got \[99\.0, 1\.0\]"),
        ({"intensity": {"percentiles": [5, 5]}}, r"percentiles must be 0 <= low < high"),
        ({"intensity": {"percentiles": [-1, 50]}}, r"percentiles must be 0 <= low < high"),
        ({"intensity": {"percentiles": [0, 100.5]}}, r"percentiles must be 0 <= low < high"),
        ({"intensity": {"policy": "window", "window": [200, -100]}}, r"intensity\.window must be \[low"),
        ({"intensity": {"policy": "window", "window": [0, 0]}}, r"intensity\.window must be \[low, high\] with low"),
        ({"intensity": {"policy": "window", "window": [-INFINITE, 0]}}, r"intensity\.window\.0: .*finite"),
        ({"augmentation": {"flip_axes": [3]}}, r"augmentation\.flip_axes\.0: .*less than or equal to 2"),
        ({"augmentation": {"flip_axes": [-1]}}, r"augmentation\.flip_axes\.0: .*greater than or equal to 0"),
        ({"augmentation": {"flip_axes": [1, 1]}}, r"flip_axes must name each axis once, got \[1, 1\]"),
        ({"augmentation": {"rotate90_axes": [1, 1]}}, r"rotate90_axes must name each axis once"),
        ({"augmentation": {"rotate90_axes": [0, 10**19]}}, r"rotate90_axes\.1: "),
        ({"augmentation": {"rotation_degrees": 1e9}}, r"rotation_degrees: .*180"),
        ({"spatial_dims": 2, "patch_size": [16, 16], "augmentation": {"flip_axes": [2]}},
         r"augmentation\.flip_axes must be axes 0 to 1, got 2"),
        ({"training": {"milestones": [float("nan")]}}, r"training\.milestones\.0: .*finite"),
        ({"training": {"milestones": [0.5, 0.2]}}, r"training\.milestones must be rising shares .* got \[0\.5, 0\.2\]"),
        ({"training": {"milestones": [2500, 5000]}}, r"training\.milestones must be rising shares"),
        ({"training": {"learning_rate": INFINITE}}, r"training\.learning_rate: .*finite"),
        ({"training": {"max_iterations": 10**400}}, r"training\.max_iterations: "),
        ({"labels": {0: "background", 1: ""}}, r"labels\.1: "),
        ({"labels": {0: "background", 1: "  "}}, r"labels\.1: "),
        ({"labels": {0: "background", 1: "a", 2: "a"}}, r"labels must have different names, got 'a' 2 times"),
        ({"channels": []}, r"channels: .*at least 1"),
        ({"channels": ["T1", "T1"]}, r"channels must have different names, got 'T1' 2 times"),
        ({"channels": [""]}, r"channels\.0: "),
        ({"name": ""}, r"name: "),
        ({"window": {"stride": [0, 8, 8]}}, r"window\.stride\.0: .*greater than or equal to 1"),
        ({"window": {"stride": [8, 8, 17]}}, r"window\.stride must not exceed patch_size .* got \[8, 8, 17\]"),
        ({"patch_size": [16, 16, 10**9]}, r"patch_size\.2: .*less than or equal to 65536"),
        ({"patch_size": [4096, 4096, 4096]}, r"patch_size must not exceed \d+ voxels in all"),
        ({"resize": [0, 32]}, r"resize\.0: "),
        ({"orientation": "RAX"}, r"orientation must be three axis codes.* got 'RAX'"),
        ({"orientation": "RLS"}, r"orientation must be three axis codes"),
        ({"orientation": ""}, r"orientation must be three axis codes"),
        ({"flavors": ["practical"]}, r"flavors: must map names to the keys that differ, got \['practical'\]"),
        ({"flavors": "practical"}, r"flavors: must map names to the keys that differ, got 'practical'"),
        ({"flavors": {"a": 3}}, r"flavors: must map names"),
        ({"flavors": {"a": {}}, "default_flavor": {}}, r"offers a, got|default_flavor: must be a name"),
        ({"flavors": {"a": {}}, "default_flavor": ["a"]}, r"default_flavor: must be a name, got \['a'\]"),
        ({"flavors": {"a": {}}, "default_flavor": "b"}, r"offers a, got 'b'"),
        ({"modality": "x" * 5000}, r"modality: .{0,400}$"),
    ],
)  # fmt: skip
def test_rejects_nonsense(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        load_preset(write_preset(tmp_path, **content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name: caf\xe9\n", r"must be text in UTF-8, got other bytes in line 1; save it as UTF-8"),
        ("name: x\n".encode("utf-16"), r"must be text in UTF-8"),
        (b"", r"must be a mapping of keys to values, got NoneType"),
        (b"- a\n", r"must be a mapping of keys to values, got list"),
        (b"a: " + b"[" * 3000, r"must not be nested so deeply|is not valid YAML"),
        (b"a: " + b"[" * 40 + b"]" * 40, r"more than 30 levels of brackets"),
        (b"name: a\nname: b\n", r"is not valid YAML .*the key 'name' stands twice"),
        (b"labels: {0: a, 1: b, 1: c}\n", r"the key '1' stands twice"),
        (b"a:\tb\n\tc: d\n", r"is not valid YAML"),
        (b"name: !!python/object/apply:os.system ['true']\n", r"is not valid YAML .*could not determine a constructor"),
        (b"name: 2020-13-45\n", r"holds a value that cannot be read"),
        (b"name: " + b"9" * 5000 + b"\n", r"holds a value that cannot be read"),
        (b"1: 2\n", r"keys must be names, got 1; quote it"),
        (b"a: &a [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
            f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n".encode()
            for old, new in zip("abcdefgh", "bcdefghi", strict=True)), r"more than 20000 values"),
        (b"#" * 1_000_001, r"must have at most 1000000 bytes, got 1000001"),
        (b"name: 2020-01-01\npatch_size: [16, 16, 16]\nlabels: {0: a, 1: b}\n", r"name: .*valid string"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)  # fmt: skip
def test_rejects_files_that_are_no_presets(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    with pytest.raises(DataError, match=message) as caught:
        load_preset(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < len(str(path)) + 800


def test_reads_a_file_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(SMALL).encode())
    assert load_preset(path).name == "mine"


VALUES = [0, -1, 1, 2, 16, 10**9, 10**19, 10**400, 0.5, -0.5, float("nan"), INFINITE, -INFINITE, None, True, False, "",
          "x", "RAS", "a\nb", "$import os", "@x", [], [1], [1, 2], [16, 16, 16], [0, 10**19], [None], ["a", "a"], {},
          {"a": 1}, {0: "a"}, {1: "b"}, [[]], "9" * 300, "\u5de6\u5fc3\u623f"]  # fmt: skip


def mutated(random):
    """A shipped preset with one to three values, keys or bytes changed."""
    names = available_presets()
    path = PRESET_DIR / f"{names[random.randint(len(names))]}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for _ in range(random.randint(1, 4)):
        places, stack = [], [content]
        while stack:
            value = stack.pop()
            pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
            places += [(value, key) for key, _ in pairs]
            stack += [part for _, part in pairs if isinstance(part, (dict, list))]
        if not places:
            break
        holder, key = places[random.randint(len(places))]
        what = random.randint(4)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[
                ["flavours", "default_flavour", "spacing", "strong_view", "codes", "unknown", 7][random.randint(7)]
            ] = VALUES[random.randint(len(VALUES))]
        else:
            holder[key] = VALUES[random.randint(len(VALUES))]
    raw = bytearray(yaml.safe_dump(content, allow_unicode=True).encode())
    if random.rand() < 0.3:
        for _ in range(random.randint(1, 4)):
            raw[random.randint(len(raw))] = random.randint(256)
    return bytes(raw)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is now spelled")
def test_2000_mutated_presets_are_refused_in_a_line_or_usable(tmp_path):
    random = np.random.RandomState(0)
    path, refused, accepted = tmp_path / "mine.yaml", 0, 0
    for _ in range(2000):
        raw = mutated(random)
        path.write_bytes(raw)
        try:
            preset = load_preset(path)
        except DataError as error:
            refused += 1
            message = str(error)
            assert "\n" not in message, raw
            assert len(message) < len(str(path)) + 800, raw
            continue
        accepted += 1
        for build in (preprocessing, training_preprocessing, validation_preprocessing, random_transforms):
            build(preset)
        (tmp_path / "copy.yaml").write_text(dump_preset(preset), encoding="utf-8")
        assert load_preset(tmp_path / "copy.yaml") == preset, raw
    assert refused > 500
    assert accepted > 200


def test_rejects_names_and_files(tmp_path):
    with pytest.raises(DataError, match=r"dataset: must be one of .*left_atrium.* or the path .* got 'left_atrum'"):
        load_preset("left_atrum")
    with pytest.raises(DataError, match=r"none\.yaml: cannot be read \(No such file"):
        load_preset(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(DataError, match=r"bad\.yaml: is not valid YAML"):
        load_preset(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(DataError, match=r"list\.yaml: a preset must be a mapping of keys to values, got list"):
        load_preset(tmp_path / "list.yaml")
    with pytest.raises(DataError, match=r"flavor: left_atrium\.yaml offers literature, practical, got 'other'"):
        load_preset("left_atrium", "other")
    with pytest.raises(DataError, match=r"flavor: mine\.yaml offers only 'practical', got 'literature'"):
        load_preset(write_preset(tmp_path), "literature")


# ------------------------------------------------------------------------------------------------- preprocessing


def preset(**options):
    return Preset.model_validate({"name": "test", **SMALL, **options})


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL"])
def test_orientation(tmp_path, codes):
    case, stored, _ = write_case(tmp_path, codes=codes)
    out = preprocessing(preset(intensity={"policy": "as_stored"}))({"image": case["image"]})["image"]
    expected = nib.as_closest_canonical(nib.load(case["image"])).get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(out[0], expected)
    untouched = preprocessing(preset(intensity={"policy": "as_stored"}, orientation=None))({"image": case["image"]})[
        "image"
    ]
    np.testing.assert_array_equal(untouched[0], stored)


def test_spacing(tmp_path):
    case, _, _ = write_case(tmp_path, sides=(20, 10, 17), spacing=(1.0, 2.0, 0.5))
    out = preprocessing(preset(spacing=[1.0, 1.0, 1.0]), label=True)(dict(case))
    assert out["image"].shape == out["label"].shape
    assert all(abs(a - b) <= 1 for a, b in zip(out["image"].shape[1:], (20, 20, 9), strict=True))
    assert set(np.unique(out["label"])) == {0, 1}


def test_intensity_policies(tmp_path):
    case, stored, _ = write_case(tmp_path)

    def run(**intensity):
        return preprocessing(preset(intensity=intensity))({"image": case["image"]})["image"][0].numpy()

    np.testing.assert_array_equal(run(policy="as_stored"), stored)
    np.testing.assert_allclose(run(policy="zscore"), (stored - stored.mean()) / stored.std(), atol=1e-4)
    low, high = np.percentile(stored, [5, 90])
    clipped = np.clip(stored, low, high)
    expected = (clipped - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(run(policy="robust", percentiles=[5, 90]), expected, atol=1e-3)
    window = np.clip((stored - 20) / 40 * 2 - 1, -1, 1)
    np.testing.assert_allclose(run(policy="window", window=[20, 60]), window, atol=1e-5)


def test_intensity_of_skull_stripped_brains_and_of_ct(tmp_path):
    values = np.random.RandomState(0).rand(20, 18, 17) * 100 + 1
    values[:6] = 0
    case, stored, _ = write_case(tmp_path, array=values)

    def run(**intensity):
        return preprocessing(preset(intensity=intensity))({"image": case["image"]})["image"][0].numpy()

    brain = np.minimum(stored[6:], np.percentile(stored[6:], 90))
    out = run(policy="robust", nonzero=True, percentiles=[0, 90])
    np.testing.assert_allclose(out[6:], (brain - brain.mean()) / brain.std(), atol=1e-4)
    np.testing.assert_allclose(out[:6], -brain.mean() / brain.std(), atol=1e-4)
    np.testing.assert_allclose(run(policy="minmax"), stored / stored.max(), atol=1e-6)
    clipped = np.clip(stored, 20, 60)
    expected = (clipped - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(run(policy="zscore", window=[20, 60]), expected, atol=1e-4)


def test_channels_are_normalized_one_by_one(tmp_path):
    case, image, _ = write_case(tmp_path)
    second = tmp_path / "second.nii.gz"
    nib.save(nib.Nifti1Image(image * 1000 + 5, nib.load(case["image"]).affine), second)
    both = preprocessing(preset(channels=["a", "b"]))({"image": [case["image"], str(second)]})["image"]
    assert both.shape[0] == 2
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-3)


def test_label_is_not_scaled(tmp_path):
    case, _, stored = write_case(tmp_path)
    out = preprocessing(preset(), label=True)(dict(case))["label"]
    np.testing.assert_array_equal(out[0], stored)


def test_training_pads_and_gives_plain_tensors(tmp_path):
    case, _, _ = write_case(tmp_path, sides=(20, 9, 17))
    for policy, sides in (("practical", (20, 16, 17)), ("literature", (22, 21, 21))):
        out = training_preprocessing(preset(augmentation={"policy": policy}))(dict(case))
        assert type(out["image"]) is type(out["label"]) is torch.Tensor
        assert not isinstance(out["image"], MetaTensor)
        assert (out["image"].dtype, out["label"].dtype) == (torch.float32, torch.uint8)
        assert out["image"].shape == out["label"].shape == (1, *sides)
    without = training_preprocessing(preset(), label=False)({"image": case["image"]})
    assert set(without) == {"image"}


def test_validation_leaves_the_label_as_stored(tmp_path):
    case, _, stored = write_case(tmp_path, codes="LPS")
    out = validation_preprocessing(preset(spacing=[2.0, 2.0, 2.0]))(dict(case))
    np.testing.assert_array_equal(out["label"][0], stored)
    assert out["image"].shape != out["label"].shape
    assert set(validation_preprocessing(preset())({"image": case["image"]})) == {"image"}


# ------------------------------------------------------------------------------------------------- postprocessing


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL", "PIR"])
def test_predictions_return_to_the_grid_of_the_file(tmp_path, codes):
    case, _, stored = write_case(tmp_path, codes=codes)
    p = preset(intensity={"policy": "as_stored"})
    chain = preprocessing(p)
    item = chain({"image": case["image"]})
    # a network that finds the label exactly, on its own grid
    foreground = (item["image"] > np.percentile(item["image"], 70)).float()
    item["pred"] = torch.cat([1 - foreground, foreground])
    out = postprocessing(p, chain, output_dir=str(tmp_path / "out"))(item)["pred"]
    np.testing.assert_array_equal(out[0], stored)
    written = nib.load(tmp_path / "out" / "image_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), stored)
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_allclose(written.affine, nib.load(case["image"]).affine)


def test_predictions_are_resampled_to_the_grid_of_the_file(tmp_path):
    sides = (24, 12, 30)
    ball = -sum((g - s // 2) ** 2 / (s / 3) ** 2 for g, s in zip(np.indices(sides), sides, strict=True))
    case, _, stored = write_case(tmp_path, sides=sides, spacing=(1.0, 2.0, 0.8), codes="LPS", array=ball)
    p = preset(spacing=[1.0, 1.0, 1.0], intensity={"policy": "as_stored"})
    chain = preprocessing(p)
    item = chain({"image": case["image"]})
    threshold = np.percentile(ball, 70)
    foreground = torch.sigmoid(40 * (item["image"] - float(threshold)))
    item["pred"] = torch.cat([1 - foreground, foreground])
    out = postprocessing(p, chain)(item)["pred"][0].numpy()
    assert out.shape == sides
    assert 2 * (out * stored).sum() / (out.sum() + stored.sum()) > 0.95


def test_probabilities(tmp_path):
    case, _, _ = write_case(tmp_path, codes="LPS")
    p = preset()
    chain = preprocessing(p)
    item = chain({"image": case["image"]})
    item["pred"] = torch.rand(2, *item["image"].shape[1:]).softmax(0)
    expected = item["pred"].clone()
    out = postprocessing(p, chain, output_dir=str(tmp_path / "out"), probabilities=True)(item)
    np.testing.assert_allclose(out["prob"].numpy(), np.flip(expected.numpy(), (1, 2)), atol=1e-6)
    written = nib.load(tmp_path / "out" / "image_prob.nii.gz")
    assert written.get_data_dtype() == np.float32
    np.testing.assert_allclose(np.moveaxis(written.get_fdata(), -1, 0), out["prob"].numpy(), atol=1e-6)


@pytest.mark.parametrize("keep", [False, True])
def test_largest_component(tmp_path, keep):
    case, _, _ = write_case(tmp_path)
    p = preset(largest_component=keep)
    chain = preprocessing(p)
    item = chain({"image": case["image"]})
    foreground = torch.zeros(1, *item["image"].shape[1:])
    foreground[0, :5, :5, :5] = 1
    foreground[0, 10:12, 10:12, 10:12] = 1
    item["pred"] = torch.cat([1 - foreground, foreground])
    out = postprocessing(p, chain)(item)["pred"]
    assert out.sum() == (125 if keep else 133)


# ------------------------------------------------------------------------------------------------- augmentation


AUGMENTATIONS = [
    {"policy": "none"},
    {"policy": "literature"},
    {"policy": "practical", "flip_axes": [0, 1]},
    {"policy": "practical", "rotate90_axes": [0, 1], "affine_probability": 1.0, "intensity_probability": 1.0},
    {"policy": "practical", "affine_probability": 0.0, "intensity_probability": 0.0, "rotate90_axes": [0, 1]},
]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_patches(augmentation, dims):
    from monai.transforms import Compose

    p = preset(augmentation=augmentation, spatial_dims=dims, patch_size=[16] * dims)
    random = Compose(random_transforms(p))
    random.set_random_state(0)
    label = torch.zeros(1, *(24, 20, 18)[:dims], dtype=torch.uint8)
    label[(0, *(slice(3, 17),) * dims)] = 1
    item = {"image": label.float() * 10 + 1, "label": label}
    seen = set()
    for _ in range(12):
        out = random(item)
        assert out["image"].shape == out["label"].shape == (1, *p.patch_size)
        assert torch.isfinite(torch.as_tensor(out["image"])).all()
        assert set(torch.as_tensor(out["label"]).unique().tolist()) <= {0, 1}
        # image and label moved together: where the label is set the image is bright
        bright = torch.as_tensor(out["image"])[torch.as_tensor(out["label"]) > 0].float().mean()
        dark = torch.as_tensor(out["image"])[torch.as_tensor(out["label"]) == 0].float().mean()
        assert bright > dark + 3 or not (torch.as_tensor(out["label"]) == 0).any()
        seen.add(tuple(torch.as_tensor(out["image"]).flatten().tolist()))
    assert len(seen) > 1
    assert torch.equal(item["label"], label)


FURTHER = ("low_resolution_probability", "inverted_gamma_probability", "bias_field_probability")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("key", FURTHER)
def test_further_intensity_changes(key, dims):
    from monai.transforms import Compose

    quiet = {"policy": "practical", "affine_probability": 0.0, "intensity_probability": 0.0}
    item = {"image": torch.randn(2, *[16] * dims, generator=torch.Generator().manual_seed(0)),
            "label": torch.ones(1, *[16] * dims)}  # fmt: skip
    without, with_it = (
        Compose(random_transforms(preset(augmentation={**quiet, key: p}, spatial_dims=dims, patch_size=[16] * dims)))
        for p in (0.0, 1.0)
    )
    assert len(with_it.transforms) == len(without.transforms) + 1  # off, it draws no random number
    image = torch.as_tensor(with_it.set_random_state(1)(item)["image"])
    assert image.shape == item["image"].shape
    assert torch.isfinite(image).all()
    assert not torch.equal(image, item["image"])
    assert torch.equal(image, torch.as_tensor(with_it.set_random_state(1)(item)["image"]))
    if key == "low_resolution_probability":
        assert image.std() < item["image"].std()
    elif key == "inverted_gamma_probability":  # order and the first two moments stay
        assert torch.equal(image[0].flatten().argsort(), item["image"][0].flatten().argsort())
        torch.testing.assert_close(image.mean(), item["image"].mean(), rtol=0, atol=1e-4)
    else:  # one factor per place, the same in both channels, counted from each channel's minimum
        low = item["image"].flatten(1).amin(1).view(2, *[1] * dims)
        factor = (image - low) / (item["image"] - low)
        known = (item["image"] - low > 0.1).all(0)
        torch.testing.assert_close(factor[0][known], factor[1][known], rtol=1e-3, atol=1e-3)
        assert 0.2 < factor[0][known].min() < 1 < factor[0][known].max() < 4


def test_mirrored_views_by_preset():
    assert load_preset("left_atrium", "practical").window.tta
    assert not load_preset("left_atrium", "literature").window.tta
    with pytest.raises(DataError, match=r"window\.tta averages over the mirrored views"):
        load_preset("hippocampus", window={"tta": True})


def test_the_practical_policy_includes_the_original(tmp_path):
    from monai.transforms import Compose

    p = preset(augmentation={"policy": "practical", "flip_axes": [0, 1, 2]})
    random = Compose(random_transforms(p))
    random.set_random_state(0)
    image = torch.randn(1, 16, 16, 16)
    same = sum(
        torch.equal(torch.as_tensor(random({"image": image, "label": image})["label"]), image) for _ in range(200)
    )
    assert same > 0


# ------------------------------------------------------------------------------------------- 2D networks, volumes


@pytest.mark.parametrize("policy", ["practical", "literature", "none"])
@pytest.mark.parametrize("sides", [(24, 20, 5), (9, 40, 3), (24, 20)])
def test_slices_of_a_volume(tmp_path, sides, policy):
    """Slices larger and smaller than the patch; image and label stay together; every slice is drawn."""
    from monai.transforms import Compose

    levels = np.broadcast_to(np.arange(1, 1 + (sides[2] if len(sides) == 3 else 1)), sides).astype(np.float32)
    case, _, _ = write_case(tmp_path, sides=sides, array=levels)
    label = (levels == levels.max()).astype(np.uint8) * (np.indices(sides)[0] < sides[0] // 2)
    nib.save(nib.Nifti1Image(label, nib.load(case["image"]).affine), case["label"])
    p = preset(
        spatial_dims=2,
        patch_size=[16, 16],
        intensity={"policy": "as_stored"},
        augmentation={"policy": policy, "affine_probability": 0.0, "intensity_probability": 0.0},
    )
    # constant slices are no constant volume; a 2D image of one value is an error of its own
    if len(sides) == 2:
        nib.save(nib.Nifti1Image(levels + np.indices(sides)[0], nib.load(case["image"]).affine), case["image"])
    item = training_preprocessing(p)(dict(case))
    assert item["image"].shape[1:] == sides
    random = Compose(random_transforms(p))
    random.set_random_state(0)
    seen = set()
    for _ in range(40):
        out = random(item)
        assert out["image"].shape == out["label"].shape == (1, 16, 16)
        if len(sides) == 3:
            values = set(torch.as_tensor(out["image"]).unique().tolist()) - {0}  # 0: padding
            assert len(values) == 1
            seen |= values
            if out["label"].any():
                assert values == {float(sides[2])}
    assert len(sides) == 2 or seen == set(range(1, sides[2] + 1))


@pytest.mark.parametrize("spacing", [None, [1.5, 1.5]])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_a_2d_preset_gives_the_volume_back(tmp_path, codes, spacing):
    """Through orientation, in-plane resampling and back, to the voxel grid and spacing of the file."""
    sides, zooms = (30, 26, 24), (1.2, 1.1, 1.3)
    ball = -sum((g - s // 2) ** 2 / (s / 3) ** 2 for g, s in zip(np.indices(sides), sides, strict=True))
    case, _, stored = write_case(tmp_path, sides=sides, spacing=zooms, codes=codes, array=ball)
    p = preset(spatial_dims=2, patch_size=[16, 16], spacing=spacing, intensity={"policy": "as_stored"})
    chain = preprocessing(p)
    item = chain({"image": case["image"]})
    assert item["image"].ndim == 4
    foreground = torch.sigmoid(40 * (item["image"] - float(np.percentile(ball, 70))))
    item["pred"] = torch.cat([1 - foreground, foreground])
    out = postprocessing(p, chain, output_dir=str(tmp_path / "out"))(item)["pred"][0].numpy()
    assert out.shape == sides
    assert 2 * (out * stored).sum() / (out.sum() + stored.sum()) > (0.99 if spacing is None else 0.95)
    written = nib.load(tmp_path / "out" / "image_seg.nii.gz")
    np.testing.assert_allclose(written.affine, nib.load(case["image"]).affine)
    np.testing.assert_allclose(np.sort(written.header.get_zooms()), np.sort(zooms), atol=1e-5)


def test_center_crop_and_back(tmp_path):
    """The field of view is cut in training and inference alike; what lies outside is background in the result."""
    case, stored, _ = write_case(tmp_path, sides=(40, 30, 20), spacing=(0.5, 1.0, 2.0), codes="LPS")
    p = preset(center_crop=[10.0, 100.0, None], intensity={"policy": "as_stored"})
    item = preprocessing(p, label=True)(dict(case))
    assert item["image"].shape == item["label"].shape == (1, 20, 30, 20)
    np.testing.assert_array_equal(item["image"][0], stored[::-1, ::-1][10:30])
    chain = preprocessing(p)
    item = chain({"image": case["image"]})
    item["pred"] = torch.cat([torch.zeros(1, 20, 30, 20), torch.ones(1, 20, 30, 20)])
    out = postprocessing(p, chain)(item)["pred"][0].numpy()
    assert out.shape == (40, 30, 20)
    assert out[10:30].all()
    assert not out[:10].any()
    assert not out[30:].any()


@pytest.mark.parametrize("sides", [(30, 26, 5), (30, 26)])
def test_slices_resized_and_back(tmp_path, sides):
    """As the 2D literature does it: every slice to one size, the result on the pixels of the file."""
    disc = -sum((g - s // 2) ** 2 / (s / 3) ** 2 for g, s in zip(np.indices(sides)[:2], sides, strict=False))
    case, _, stored = write_case(tmp_path, sides=sides, array=disc + np.zeros(sides))
    p = preset(spatial_dims=2, patch_size=[64, 64], resize=[64, 64], intensity={"policy": "as_stored"})
    chain = preprocessing(p)
    item = chain({"image": case["image"]})
    assert item["image"].shape == (1, 64, 64, *sides[2:])
    foreground = (item["image"] > float(np.percentile(disc + np.zeros(sides), 70))).float()
    item["pred"] = torch.cat([1 - foreground, foreground])
    np.testing.assert_array_equal(postprocessing(p, chain)(item)["pred"][0].numpy(), stored)


# -------------------------------------------------------------------------------- images of every birth, to the voxel


def segment_and_score(folder, image, affine, preset):
    """A fixed network that tells left from right through the whole chain, as a file, scored as a file."""
    from monai_ssl.engines import WindowInferer
    from monai_ssl.metrics import read_results
    from monai_ssl.runs.scoring import evaluate_predictions

    folder.mkdir()
    nib.save(nib.Nifti1Image(image, affine), folder / "scan.nii.gz")
    torch.manual_seed(0)
    net = torch.nn.Conv3d(1, preset.n_classes, 5, padding=2)
    chain = preprocessing(preset)
    item = chain({"image": str(folder / "scan.nii.gz")})
    item["pred"] = WindowInferer(preset.patch_size, amp="off")(item["image"][None], net)[0].detach()
    postprocessing(preset, chain, output_dir=str(folder / "out"))(item)
    written = nib.load(folder / "out" / "scan_seg.nii.gz")
    # a label drawn on the stored voxels, that is what the network found
    nib.save(nib.Nifti1Image(np.asarray(written.dataobj).copy(), affine), folder / "truth.nii.gz")
    (folder / "d.json").write_text('{"training": [], "testing": [{"image": "scan.nii.gz", "label": "truth.nii.gz"}]}')
    (folder / "p.yaml").write_text(dump_preset(preset))
    results = evaluate_predictions(folder / "out", str(folder / "p.yaml"), folder, "d.json", "testing")
    return written, read_results(results).rows


def check_every_birth(tmp_path, image, affine):
    p = Preset.model_validate(
        {"name": "t", "labels": {0: "b", 1: "x", 2: "y"}, "patch_size": [16, 16, 16], "spacing": None}
    )
    born, rows = segment_and_score(tmp_path / "a", image, affine, p)
    assert born.shape == image.shape
    np.testing.assert_allclose(born.affine, affine, atol=1e-5)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(image, affine))
    other, more = segment_and_score(tmp_path / "b", np.asarray(canonical.dataobj), canonical.affine, p)
    # the same anatomy is segmented alike, whichever way the voxels are stored
    mine = nib.as_closest_canonical(born)
    np.testing.assert_array_equal(np.asarray(mine.dataobj), np.asarray(other.dataobj))
    np.testing.assert_allclose(mine.affine, other.affine, atol=1e-5)
    for first, second in zip(rows, more, strict=True):
        assert first["dice"] == second["dice"] == 1.0
        assert first["hd95_mm"] == second["hd95_mm"] == 0.0
        assert first["volume_ml_prediction"] == pytest.approx(second["volume_ml_prediction"])
    return born


@pytest.mark.parametrize("codes", ["LPS", "PIR"])
def test_orientation_and_spacing_survive_prediction_file_and_evaluation(tmp_path, codes):
    sides = (22, 19, 24)
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(codes)), sides)
    affine = affine @ np.diag([0.7, 1.3, 2.0, 1.0])
    image = np.random.RandomState(0).rand(*sides).astype(np.float32)
    written = check_every_birth(tmp_path, image, affine)
    np.testing.assert_allclose(written.header.get_zooms(), (0.7, 1.3, 2.0), rtol=1e-5)


@pytest.mark.data
def test_orientation_survives_on_real_dicom_and_nifti(tmp_path, real_data):
    from monai_ssl.curation.prepare.files import read_dicom

    array, affine, _ = read_dicom(real_data / "dicom" / "Study1_HCropVolume")
    assert "".join(nib.aff2axcodes(affine)) == "LPS"
    (tmp_path / "dicom").mkdir()
    check_every_birth(tmp_path / "dicom", array.astype(np.float32), affine)
    stored = nib.load(real_data / "hippocampus" / "imagesTr" / "hippocampus_006.nii.gz")
    (tmp_path / "nifti").mkdir()
    check_every_birth(tmp_path / "nifti", stored.get_fdata(dtype=np.float32), stored.affine)


# ------------------------------------------------------------------------------------------------- codes, content


def test_content_instead_of_a_file():
    preset = load_preset("hippocampus")
    assert load_preset(preset.model_dump(mode="json")) == preset  # what a packaged bundle carries
    assert load_preset({**SMALL, "name": "mine"}).name == "mine"
    with pytest.raises(DataError, match="dataset: color: unknown key"):
        load_preset({**SMALL, "color": "red"})


@pytest.mark.parametrize("codes", [{2: ["1", "SCT", "x"]}, {0: ["1", "SCT", "x"]}, {1: ["1" * 17, "SCT", "x"]},
                                   {1: ["1", "", "x"]}, {1: ["1", "SCT", "x" * 65]}])  # fmt: skip
def test_codes_must_fit_a_foreground_class_and_dicom(codes):
    with pytest.raises(DataError, match="codes: must map a foreground class"):
        load_preset({**SMALL, "codes": codes})
