from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from monai_ssl import files
from monai_ssl.curation.phantom.acquisition import SCANNERS
from monai_ssl.curation.phantom.case import phantom_case
from monai_ssl.curation.phantom.dataset import CLASS_NAMES, write_phantom

SPACING = 2.5
SMALL = {"n_labeled": 2, "n_unlabeled": 2, "n_validation": 1, "n_testing": 1, "spacing": 5.0, "progress": False}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def resize(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return ndimage.zoom(array.astype(np.float32), [t / s for t, s in zip(shape, array.shape, strict=True)], order=1)


def digests(root: Path) -> dict[str, str]:
    files = sorted(f for f in root.rglob("*") if f.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def cases():
    return [phantom_case(i, spacing=SPACING) for i in range(48)]


# ---------------------------------------------------------------------------------------------- statistics


def test_size_position_and_fraction(cases):
    fractions = np.array([(label == 1).mean() for _, label, _, _ in cases])
    volumes = np.array([(label == 1).sum() * SPACING**3 / 1000 for _, label, _, _ in cases])
    assert 0.065 < np.median(fractions) < 0.105
    assert fractions.min() > 0.03
    assert fractions.max() < 0.22
    assert 38 < np.median(volumes) < 58  # ml
    assert 0.2 < np.log(volumes).std() < 0.5
    extents = []
    for _, label, _, _ in cases:
        box = np.argwhere(label == 1)
        extents.append((box.max(0) - box.min(0) + 1) * SPACING)
    x, y, z = np.median(extents, axis=0)  # mm: wide and flat
    assert 85 < x < 112
    assert 50 < y < 66
    assert 30 < z < 42


def test_intensity_overlap_is_as_measured(cases):
    aucs, d_primes = [], []
    for image, label, _, _ in cases:
        atrium = label == 1
        inside = ndimage.distance_transform_edt(atrium) * SPACING
        outside = ndimage.distance_transform_edt(~atrium) * SPACING
        core = image[inside > SPACING]
        shell = image[(outside >= 1.9) & (outside <= 6.3)]  # 3-10 voxels of 0.625 mm
        ranks = np.argsort(np.argsort(np.concatenate([core, shell])))[: len(core)]
        aucs.append((ranks.sum() - len(core) * (len(core) - 1) / 2) / len(core) / len(shell))
        d_primes.append((core.mean() - shell.mean()) / np.sqrt((core.var() + shell.var()) / 2))
    assert 0.77 < np.mean(aucs) < 0.85
    assert np.percentile(aucs, 10) > 0.64
    assert np.percentile(aucs, 90) < 0.94
    assert 1.0 < np.median(d_primes) < 1.7


def test_shape_prior_alone_is_not_enough(cases):
    half = len(cases) // 2
    mean = np.mean([resize(label, (48, 36, 22)) for _, label, _, _ in cases[:half]], axis=0)
    scores = [dice(resize(mean, label.shape) > 0.5, label == 1) for _, label, _, _ in cases[half:]]
    assert 0.52 < np.mean(scores) < 0.66


def test_best_threshold_with_largest_component_fails(cases):
    scores = []
    for image, label, _, _ in cases[:20]:
        best = 0.0
        for q in range(45, 97, 5):  # the best threshold of each case, chosen with the answer in hand
            components, n = ndimage.label(image > np.percentile(image, q))
            if n:
                sizes = np.bincount(components.ravel())
                best = max(best, dice(components == 1 + np.argmax(sizes[1:]), label == 1))
        scores.append(best)
    assert np.mean(scores) < 0.55


def test_scans_differ(cases):
    infos = [info for *_, info in cases]
    assert {info["scanner"] for info in infos} == set(SCANNERS)
    assert len(SCANNERS) >= 3
    assert sum(s.weight for s in SCANNERS.values()) == pytest.approx(1.0)
    means = np.array([image[label == 1].mean() for image, label, _, _ in cases])
    assert means.max() / means.min() > 4  # stored units differ from scan to scan
    for image, _, _, info in cases:
        assert len(np.unique(image)) <= info["quantization_levels"]
        assert 38 <= info["quantization_levels"] <= 233
    inverted = sum(info["inverted"] for i in range(300) if (info := phantom_case(i, spacing=5.0)[3]))
    assert 1 <= inverted <= 21  # a few percent


# ---------------------------------------------------------------------------------------------- one case


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("n_classes", [2, 3, 4, 5])
@pytest.mark.parametrize("cropped", [True, False])
def test_case_contract(spatial_dims, n_classes, cropped):
    image, label, affine, info = phantom_case(
        3, seed=1, spatial_dims=spatial_dims, n_classes=n_classes, spacing=2.5, cropped=cropped
    )
    assert image.shape == label.shape
    assert image.ndim == spatial_dims
    assert image.dtype == np.float32
    assert label.dtype == np.uint8
    assert affine.shape == (4, 4)
    assert np.diag(affine).tolist() == [2.5, 2.5, 2.5, 1.0]
    assert np.isfinite(image).all()
    assert label.max() < n_classes
    if spatial_dims == 3:
        assert set(np.unique(label)) == set(range(n_classes))
    assert info["scanner"] in SCANNERS


def test_same_call_same_bytes_whatever_the_order():
    first = phantom_case(7, seed=3, spacing=5.0)
    phantom_case(8, seed=3, spacing=5.0)
    again = phantom_case(7, seed=3, spacing=5.0)
    for a, b in zip(first[:3], again[:3], strict=True):
        assert a.tobytes() == b.tobytes()
    assert first[3] == again[3]
    assert phantom_case(8, seed=3, spacing=5.0)[0].tobytes() != first[0].tobytes()
    assert phantom_case(7, seed=4, spacing=5.0)[0].tobytes() != first[0].tobytes()


def test_other_process_gives_the_same():
    code = (
        "import hashlib; from monai_ssl.curation.phantom import phantom_case as p;"
        "a = p(5, spacing=5.0); print(hashlib.sha256(a[0].tobytes() + a[1].tobytes()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    image, label, _, _ = phantom_case(5, spacing=5.0)
    assert out == hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()


def test_same_anatomy_at_every_spacing():
    _, coarse, affine, _ = phantom_case(2, spacing=2.5)
    _, fine, affine_fine, _ = phantom_case(2, spacing=1.25)
    assert fine.shape == tuple(2 * s for s in coarse.shape)
    assert np.allclose(affine[:3, 3] - 1.25, affine_fine[:3, 3] - 0.625)  # same corner
    blocks = fine.reshape(coarse.shape[0], 2, coarse.shape[1], 2, coarse.shape[2], 2).mean(axis=(1, 3, 5))
    assert dice(blocks >= 0.5, coarse == 1) > 0.93


def test_options_keep_the_anatomy():
    _, two, affine, _ = phantom_case(4, n_classes=2)
    _, four, _, _ = phantom_case(4, n_classes=4)
    assert np.array_equal(two == 1, four == 1)
    _, large, affine_large, _ = phantom_case(4, cropped=False)
    assert all(a >= b for a, b in zip(large.shape, two.shape, strict=True))
    assert np.prod(large.shape) > 2 * np.prod(two.shape)
    center = np.argwhere(two == 1).mean(0) * 2.5 + affine[:3, 3]
    center_large = np.argwhere(large == 1).mean(0) * 2.5 + affine_large[:3, 3]
    assert np.abs(center - center_large).max() < 6.0  # mm; the crop may cut veins


def test_uncropped_does_not_give_the_location_away():
    centers = []
    for i in range(8):
        _, label, _, _ = phantom_case(i, spacing=5.0, cropped=False)
        centers.append(np.argwhere(label == 1).mean(0) / label.shape)
    assert (np.std(centers, axis=0) > 0.05).all()


@pytest.mark.parametrize("index", range(4))
def test_two_dimensional_slice_shows_the_atrium(index):
    image, label, _, _ = phantom_case(index, spatial_dims=2, spacing=1.25)
    assert image.ndim == 2
    assert min(image.shape) >= 64
    assert 0.04 < (label == 1).mean() < 0.4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"index": -1}, "index must be an integer >= 0, got -1"),
        ({"index": 1.5}, "index must be an integer >= 0, got 1.5"),
        ({"seed": -2}, "seed must be an integer >= 0, got -2"),
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, got 4"),
        ({"n_classes": 1}, r"n_classes must be an integer from 2 to 5 \(background included\), got 1"),
        ({"n_classes": 6}, "n_classes must be an integer from 2 to 5"),
        ({"spacing": 0.1}, r"spacing must be a number in \[0.4, 5\] \(mm\), got 0.1"),
        ({"spacing": "2"}, "spacing must be a number"),
    ],
)
def test_case_ill_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        phantom_case(**{"index": 0, **kwargs})


# ---------------------------------------------------------------------------------------------- data set


def test_write(tmp_path):
    path = write_phantom(tmp_path / "set", **SMALL)
    assert path == tmp_path / "set" / "datalist.json"
    content = json.loads(path.read_text())
    assert content["labels"] == {"0": "background", "1": "left_atrium"}
    assert content["numClasses"] == 2
    assert content["description"]
    assert {k: len(content[k]) for k in ("training", "unlabeled", "validation", "testing")} == {
        "training": 2, "unlabeled": 2, "validation": 1, "testing": 1,
    }  # fmt: skip
    for entry in content["training"] + content["validation"] + content["testing"]:
        image, label = (nib.load(path.parent / entry[k]) for k in ("image", "label"))
        assert image.shape == label.shape
        assert np.allclose(image.affine, label.affine)
        assert image.header.get_zooms() == (5.0, 5.0, 5.0)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert image.get_data_dtype() == np.float32
        assert label.get_data_dtype() == np.uint8
    for entry in content["unlabeled"]:
        assert set(entry) == {"image"}
        assert not (path.parent / entry["image"].replace("images", "labels")).exists()
    assert not (path.parent / "labels_unlabeled").exists()
    assert not (path.parent / "datalist_all_labels.json").exists()
    assert not list(path.parent.rglob("*.tmp"))


def test_reference_labels(tmp_path):
    path = write_phantom(tmp_path, **SMALL, reference_labels=True)
    everything = json.loads((tmp_path / "datalist_all_labels.json").read_text())
    assert len(everything["training"]) == 4
    assert everything["unlabeled"] == []
    for entry in everything["training"]:
        assert (tmp_path / entry["label"]).is_file()
    content = json.loads(path.read_text())
    assert len(content["training"]) == 2
    assert all(set(entry) == {"image"} for entry in content["unlabeled"])
    assert sorted(f.name for f in (tmp_path / "labels").iterdir()) == [
        "labeled_0000.nii.gz", "labeled_0001.nii.gz", "testing_0000.nii.gz", "validation_0000.nii.gz",
    ]  # fmt: skip


@pytest.mark.parametrize(("spatial_dims", "n_classes"), [(2, 2), (2, 4), (3, 4)])
def test_write_variants(tmp_path, spatial_dims, n_classes):
    path = write_phantom(tmp_path, **SMALL, spatial_dims=spatial_dims, n_classes=n_classes)
    content = json.loads(path.read_text())
    assert list(content["labels"].values()) == list(CLASS_NAMES[:n_classes])
    image = nib.load(tmp_path / content["training"][0]["image"])
    assert len(image.shape) == spatial_dims
    assert image.header.get_zooms() == (5.0,) * spatial_dims


def test_monai_reads_it(tmp_path):
    from monai.data import load_decathlon_datalist
    from monai.transforms import LoadImaged

    path = write_phantom(tmp_path, **SMALL)
    items = load_decathlon_datalist(path, True, "training")
    item = LoadImaged(("image", "label"), ensure_channel_first=True)(items[0])
    assert item["image"].shape == item["label"].shape
    assert item["image"].shape[0] == 1
    assert np.allclose(item["image"].pixdim, 5.0)


def test_bytes_are_deterministic_and_cases_stable(tmp_path):
    write_phantom(tmp_path / "a", **SMALL)
    write_phantom(tmp_path / "b", **SMALL)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    write_phantom(tmp_path / "c", **{**SMALL, "n_labeled": 3, "n_unlabeled": 1})
    a, c = digests(tmp_path / "a"), digests(tmp_path / "c")
    assert all(a[name] == c[name] for name in a if name in c and name.endswith(".nii.gz"))


def test_reuse_and_resume(tmp_path, monkeypatch):
    path = write_phantom(tmp_path, **SMALL)
    before = digests(tmp_path)
    calls = []
    original = phantom_case
    monkeypatch.setattr(
        "monai_ssl.curation.phantom.dataset.phantom_case", lambda *a: (calls.append(a), original(*a))[1]
    )
    assert write_phantom(tmp_path, **SMALL) == path
    assert calls == []
    (tmp_path / "labels" / "labeled_0001.nii.gz").unlink()
    path.unlink()
    write_phantom(tmp_path, **SMALL)
    assert len(calls) == 1
    assert digests(tmp_path) == before


def test_refuses_a_folder_with_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=f"output_dir {tmp_path} must be empty .* choose another output_dir"):
        write_phantom(tmp_path, **SMALL)
    assert [f.name for f in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="must be a folder"):
        write_phantom(tmp_path / "notes.txt", **SMALL)


def test_refuses_other_parameters(tmp_path):
    write_phantom(tmp_path, **SMALL)
    before = digests(tmp_path)
    with pytest.raises(ValueError, match=r"n_labeled=2 \(asked for 3\), seed=0 \(asked for 1\)"):
        write_phantom(tmp_path, **{**SMALL, "n_labeled": 3, "seed": 1})
    assert digests(tmp_path) == before
    (tmp_path / "phantom.json").write_text("{")
    with pytest.raises(ValueError, match="unreadable"):
        write_phantom(tmp_path, **SMALL)


def test_failed_write_leaves_nothing_half_written(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", broken)
        with pytest.raises(OSError, match="disk full"):
            write_phantom(tmp_path, **SMALL)
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == []
    write_phantom(tmp_path, **SMALL)


def test_silent_without_terminal(tmp_path, capfd):
    write_phantom(tmp_path, **{**SMALL, "progress": True})
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_labeled": 0}, "n_labeled must be an integer >= 1, got 0"),
        ({"n_unlabeled": -1}, "n_unlabeled must be an integer >= 0, got -1"),
        ({"n_validation": 1.0}, "n_validation must be an integer >= 0, got 1.0"),
        ({"n_testing": True}, "n_testing must be an integer >= 0, got True"),
        ({"n_testing": 1_000_000}, "n_testing must be at most 999999, got 1000000"),
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"seed": "0"}, "seed must be an integer >= 0, got '0'"),
    ],
)
def test_write_ill_options(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        write_phantom(tmp_path / "set", **{**SMALL, **kwargs})
    assert not (tmp_path / "set").exists()
