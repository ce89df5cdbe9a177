"""Proposed presets: what the data show must decide, and the proposal must be usable."""

import nibabel as nib
import numpy as np
import pytest

from monai_ssl.curation.propose import propose_preset, write_preset
from monai_ssl.data import DataError, load_preset

LABELS = {0: "background", 1: "organ"}


def cases(folder, shape, spacing, number=4, codes="RAS", low=0, labeled=2, size=None, seed=0, vary=1.0):
    """``number`` cases with a box of ``size`` voxels as label in the first ``labeled`` of them."""
    random = np.random.RandomState(seed)
    entries = []
    for i in range(number):
        image = random.randint(low, low + 100 if low >= 0 else 400, shape).astype(np.int16)
        zooms = np.array(spacing) * (vary if i % 2 else 1.0)
        ornt = nib.orientations.axcodes2ornt(tuple((codes + "S")[:3]))
        affine = nib.orientations.inv_ornt_aff(ornt, (*shape, 1)[:3]) @ np.diag([*zooms, *[1.0] * (4 - len(zooms))])
        path = folder / f"case_{i}.nii.gz"
        nib.save(nib.Nifti1Image(image, affine), path)
        entry = {"image": str(path)}
        if i < labeled:
            label = np.zeros(shape, np.uint8)
            label[tuple(slice(2, 2 + side) for side in (size or [6] * len(shape)))] = 1
            image[label > 0] = 90
            nib.save(nib.Nifti1Image(image, affine), path)
            entry["label"] = str(folder / f"label_{i}.nii.gz")
            nib.save(nib.Nifti1Image(label, affine), entry["label"])
        entries.append(entry)
    return entries


def proposed(tmp_path, entries, labels=LABELS):
    proposal = propose_preset(entries, labels)
    write_preset(tmp_path / "preset.yaml", proposal)
    assert all(len(reason) < 200 for reason in proposal.reasons)
    return load_preset(tmp_path / "preset.yaml"), "\n".join(proposal.reasons)


def test_isotropic_mr(tmp_path):
    preset, reasons = proposed(tmp_path, cases(tmp_path, (60, 50, 40), (1, 1, 1), size=(20, 20, 20)))
    assert (preset.spatial_dims, preset.orientation, preset.spacing) == (3, "RAS", None)
    assert preset.patch_size == (32, 32, 32)  # 1.5 times 20 voxels
    assert preset.intensity.policy == "robust"
    assert preset.training.labeled_batch_size == 4
    assert "read 4 of 4 cases" in reasons
    assert preset.augmentation.flip_axes == ()


def test_ct_in_hounsfield_units(tmp_path):
    preset, reasons = proposed(tmp_path, cases(tmp_path, (40, 40, 40), (1, 1, 1), low=-1000))
    assert preset.modality == "CT"
    assert preset.intensity.policy == "window"
    assert preset.intensity.window[0] <= 90 <= preset.intensity.window[1]
    assert "Hounsfield" in reasons


@pytest.mark.parametrize(("codes", "orientation"), [("RAS", "RAS"), ("LPS", "RAS"), ("PIR", None)])
def test_thick_slices_go_through_a_2d_network(tmp_path, codes, orientation):
    preset, reasons = proposed(tmp_path, cases(tmp_path, (100, 90, 10), (1.5, 1.5, 8.0), codes=codes, size=(30, 30, 4)))
    assert preset.spatial_dims == 2
    assert preset.patch_size == (48, 48)
    assert preset.orientation == orientation
    assert "5.3 times thicker" in reasons


def test_thick_slices_along_another_axis_stay_3d(tmp_path):
    preset, reasons = proposed(tmp_path, cases(tmp_path, (10, 90, 90), (8.0, 1.5, 1.5), size=(4, 30, 30)))
    assert preset.spatial_dims == 3
    assert "would have to be the last axis" in reasons


def test_few_slices_without_true_spacing(tmp_path):
    assert proposed(tmp_path, cases(tmp_path, (100, 90, 9), (1, 1, 1)))[0].spatial_dims == 2


def test_voxel_sizes_that_differ_are_resampled_to_the_median(tmp_path):
    entries = cases(tmp_path, (60, 60, 60), (1.0, 1.0, 2.0), number=5, vary=1.5, labeled=3, size=(24, 24, 12))
    preset, reasons = proposed(tmp_path, entries)
    assert preset.spacing == (1.0, 1.0, 2.0)
    assert "factor of 1.50" in reasons
    # 24 voxels of 1.5 mm are 36 voxels of 1 mm, with surroundings 64; the median image has 60
    assert preset.patch_size[0] == 48


def test_large_volumes_stay_within_memory(tmp_path):
    entries = cases(tmp_path, (200, 190, 160), (0.7, 0.7, 0.7), number=2, labeled=0)
    preset, reasons = proposed(tmp_path, entries)
    assert np.prod(preset.patch_size) <= 112 * 112 * 80
    assert min(preset.patch_size) >= 64
    assert "reduced to fit into memory" in reasons
    assert "no label to tell the size" in reasons


def test_two_dimensions_and_channels(tmp_path):
    a, b = (cases(tmp_path / name, (70, 60), (1, 1)) for name in (tmp_path / "a", tmp_path / "b") if not name.mkdir())
    both = [{**entry, "image": [entry["image"], other["image"]]} for entry, other in zip(a, b, strict=True)]
    preset, _ = proposed(tmp_path, both)
    assert preset.spatial_dims == 2
    assert preset.channels == ("channel 0", "channel 1")
    with pytest.raises(DataError, match=r"same number of channels; case_3 has 1, others 2"):
        propose_preset([*both[:3], a[3]], LABELS)


@pytest.mark.data
def test_real_hippocampus_gets_the_patch_that_was_chosen_by_hand(tmp_path, real_data):
    from monai_ssl.data import load_datalist

    cases = load_datalist("hippocampus_dev_10_180_val20.json", real_data / "hippocampus")
    preset, _ = proposed(tmp_path, cases.training + cases.unlabeled, cases.labels)
    shipped = load_preset("hippocampus")
    assert preset.patch_size == shipped.patch_size
    assert preset.intensity == shipped.intensity


def test_refusals(tmp_path):
    entries = cases(tmp_path, (20, 20, 20), (1, 1, 1))
    with pytest.raises(DataError, match="only be proposed from cases, got none"):
        propose_preset([], LABELS)
    with pytest.raises(DataError, match=r"without gap, got \[0, 2\]: give --label_map '\{2: 1\}'"):
        propose_preset(entries, {0: "background", 2: "organ"})
    (tmp_path / "case_1.nii.gz").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"case_1\.nii\.gz: "):
        propose_preset(entries, LABELS)
