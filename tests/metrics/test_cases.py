"""Overlap, surface distances and the rows of one case."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_ssl.data import load_preset
from monai_ssl.data.pipelines import cleaning
from monai_ssl.labels import IGNORE_LABEL
from monai_ssl.metrics import (
    DISTANCE_METRICS,
    SurfaceDistances,
    case_metrics,
    dice_score,
    image_diagonal,
    jaccard_score,
    surface_points,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "golden_dtc.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as data:
        return {key: data[key] for key in ("metric_pred", "metric_gt", "metric_pred_gt", "metric_gt_pred")} | {
            key: data[key] for key in ("lcc_in", "lcc_out")
        }


def ball(shape, center, radius):
    grid = np.indices(shape).T - np.asarray(center)
    return ((grid**2).sum(-1) <= radius**2).T


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("metric_pred", "metric_gt", "metric_pred_gt"), ("metric_gt", "metric_pred", "metric_gt_pred")],
)
def test_golden_dtc_metrics(golden, first, second, expected):
    row = case_metrics(golden[first], golden[second], {1: "x"}, spacing=1.0)[0]
    values = [row["dice"], row["jaccard"], row["hd95_voxel"], row["asd_voxel"]]
    np.testing.assert_allclose(values, golden[expected], atol=1e-6, rtol=0)
    assert row["status"] == "ok"


def test_golden_dtc_asd_runs_one_way(golden):
    forth = case_metrics(golden["metric_pred"], golden["metric_gt"], {1: "x"}, 1.0)[0]
    back = case_metrics(golden["metric_gt"], golden["metric_pred"], {1: "x"}, 1.0)[0]
    assert forth["asd_voxel"] == pytest.approx(1.081735, abs=1e-6)
    assert back["asd_voxel"] == pytest.approx(1.396638, abs=1e-6)
    assert forth["assd_mm"] == pytest.approx(back["assd_mm"])


def test_golden_ugmcl_metrics():
    with np.load(GOLDEN.parent / "golden_ugmcl.npz") as data:
        golden = {key: data[key] for key in data if "metric" in key}
    keys = ("dice", "jaccard", "hd95_voxel", "asd_voxel")
    pred, gt = golden["metric_pred"], golden["metric_gt"]
    row = case_metrics(pred, gt, {1: "x"}, spacing=1.0)[0]
    np.testing.assert_allclose([row[k] for k in keys], golden["metric_pred_first"], atol=1e-6, rtol=0)
    np.testing.assert_allclose([row["dice"], row["hd95_voxel"]], golden["val_metric_dice_hd95"], atol=1e-6, rtol=0)
    turned = case_metrics(gt, pred, {1: "x"}, spacing=1.0)[0]  # as the released test script calls it
    np.testing.assert_allclose([turned[k] for k in keys], golden["metric_official_call_gt_first"], atol=1e-6, rtol=0)


def test_golden_dtc_largest_component(golden):
    """What a preset with ``largest_component: true`` appends is what the released test script does."""
    (keep,) = cleaning(load_preset("left_atrium").model_copy(update={"largest_component": True}))
    found = keep({"pred": torch.from_numpy(golden["lcc_in"].astype(np.int64))[None]})["pred"]
    np.testing.assert_array_equal(found[0].numpy(), golden["lcc_out"])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((20, 17), (1.0, 1.0)), ((20, 17), (0.7, 2.5)), ((14, 12, 9), (1.25, 1.25, 1.25)), ((14, 12, 9), (0.7, 0.8, 3.0))],
)
def test_equals_medpy_on_random_masks(shape, spacing, seed):
    # part of the extra "test", which leaves it out where it does not build
    load = importlib.import_module if sys.platform == "linux" else pytest.importorskip
    binary = load("medpy.metric.binary")
    rng = np.random.default_rng(seed)
    # sparse, dense and border-touching masks
    prediction, reference = rng.random(shape) < (0.02, 0.3, 0.8, 0.5)[seed], rng.random(shape) < 0.4
    reference[:3] = True
    row = case_metrics(prediction, reference, {1: "x"}, spacing)[0]
    expected = {
        "dice": binary.dc(prediction, reference),
        "jaccard": binary.jc(prediction, reference),
        "hd95_mm": binary.hd95(prediction, reference, spacing),
        "asd_mm": binary.asd(prediction, reference, spacing),
        "assd_mm": binary.assd(prediction, reference, spacing),
        "hd95_voxel": binary.hd95(prediction, reference),
        "asd_voxel": binary.asd(prediction, reference),
    }
    for key, value in expected.items():
        assert row[key] == pytest.approx(value, abs=1e-6), key


def test_against_brute_force():
    rng = np.random.default_rng(7)
    first, second, spacing = rng.random((7, 6, 5)) < 0.3, rng.random((7, 6, 5)) < 0.3, np.array([1.0, 0.5, 2.0])

    def surface(mask):
        points = []
        for index in np.argwhere(mask):
            for axis in range(3):
                for step in (-1, 1):
                    other = index.copy()
                    other[axis] += step
                    outside = other[axis] < 0 or other[axis] >= mask.shape[axis]
                    if outside or not mask[tuple(other)]:
                        points.append(tuple(index))
        return np.array(sorted(set(points))) * spacing

    a, b = surface(first), surface(second)
    table = np.linalg.norm(a[:, None] - b[None], axis=-1)
    distances = SurfaceDistances(first, second, spacing.tolist())
    assert distances.asd() == pytest.approx(table.min(1).mean())
    assert distances.assd() == pytest.approx(np.r_[table.min(1), table.min(0)].mean())
    assert distances.hd95() == pytest.approx(np.percentile(np.r_[table.min(1), table.min(0)], 95))


def test_border_voxels_are_surface():
    assert len(surface_points(np.ones((4, 4, 4), bool))) == 64 - 8  # all but the 2x2x2 core
    assert len(surface_points(np.zeros((4, 4), bool))) == 0


def test_masks_do_not_end_beside_what_nobody_knows():
    """Of a cylinder that is drawn too thick everywhere, some slices say what each of them says by itself."""
    x, y, _ = np.indices((24, 24, 20)) - 11.5
    radius = np.hypot(x, y)
    prediction, reference = ((radius < r).astype(np.uint8) for r in (9, 6))
    slices = [3, 8, 9, 15]
    label = np.full(reference.shape, IGNORE_LABEL, np.uint8)
    label[..., slices] = reference[..., slices]
    (row,) = case_metrics(prediction, label, {1: "organ"}, (0.5, 0.5, 2.0))
    for k in slices:
        (alone,) = case_metrics(prediction[..., k], reference[..., k], {1: "organ"}, (0.5, 0.5))
        for metric in ("dice", *DISTANCE_METRICS):
            assert row[metric] == pytest.approx(alone[metric])
    # where known voxels touch, a mask ends as anywhere
    known = np.ones((4, 6), bool)
    known[:, 4:] = False
    mask = np.zeros((4, 6), bool)
    mask[1:3, 1:4] = True
    assert sorted(map(tuple, surface_points(mask, known))) == sorted(map(tuple, np.argwhere(mask)))
    mask[:, :4] = True
    assert {tuple(point) for point in surface_points(mask, known)} == {
        (i, j) for i in range(4) for j in range(4) if i in (0, 3) or j == 0
    }


def test_a_mask_that_ends_nowhere_known_ends_beside_the_unknown():
    label = np.full((5, 5, 5), IGNORE_LABEL)
    label[2, 2, 2] = 1
    (row,) = case_metrics(np.ones((5, 5, 5), int), label, {1: "organ"}, 1.0)
    assert (row["status"], row["dice"], row["hd95_mm"], row["asd_voxel"]) == ("ok", 1.0, 0.0, 0.0)


def test_anisotropic_spacing_scales_the_right_axis():
    prediction, reference = np.zeros((10, 10, 10), int), np.zeros((10, 10, 10), int)
    prediction[4, 4, 2] = reference[4, 4, 5] = 1
    row = case_metrics(prediction, reference, {1: "x"}, (1.0, 1.0, 2.5))[0]
    assert (row["hd95_mm"], row["asd_mm"], row["hd95_voxel"]) == (7.5, 7.5, 3.0)


def test_translation_invariance_and_volume():
    base = np.zeros((30, 30, 12), int)
    base[ball(base.shape, (10, 10, 6), 4)] = 1
    row = case_metrics(np.roll(base, 3, 0), base, {1: "x"}, (2.0, 1.0, 1.0))[0]
    other = case_metrics(np.roll(base, 11, 0), np.roll(base, 8, 0), {1: "x"}, (2.0, 1.0, 1.0))[0]
    assert row["hd95_mm"] == pytest.approx(other["hd95_mm"])
    assert row["volume_ml_reference"] == row["volume_ml_prediction"] == pytest.approx(base.sum() * 2 / 1000)


@pytest.mark.parametrize(
    ("full", "status", "overlap"),
    [((False, True), "empty_prediction", 0), ((True, False), "empty_reference", 0), ((False, False), "both_empty", 1)],
)
def test_empty_masks_take_the_penalty(full, status, overlap):
    masks = [np.zeros((6, 8, 10), int) for _ in full]
    for mask, filled in zip(masks, full, strict=True):
        mask[2:4, 2:4, 2:4] = int(filled)
    row = case_metrics(*masks, {1: "x"}, (2.0, 1.0, 0.5))[0]
    assert row["status"] == status
    assert row["dice"] == row["jaccard"] == overlap
    for key in DISTANCE_METRICS:
        diagonal = math.dist((0, 0, 0), (6, 8, 10) if key.endswith("voxel") else (12, 8, 5))
        assert row[key] == (0 if overlap else pytest.approx(diagonal)), key


def test_penalty_exceeds_every_possible_distance():
    prediction, reference = np.zeros((9, 7), int), np.zeros((9, 7), int)
    prediction[0, 0] = reference[-1, -1] = 1
    assert case_metrics(prediction, reference, {1: "x"}, 1.5)[0]["hd95_mm"] < image_diagonal((9, 7), 1.5)


def test_rows_per_class_in_2d():
    reference = np.zeros((12, 12), int)
    reference[2:6, 2:6], reference[7:10, 7:10] = 1, 3
    prediction = np.where(reference == 3, 0, reference)
    rows = case_metrics(prediction, reference, {"0": "background", "3": "b", "1": "a"}, 1.0, case="k")
    assert [(r["case"], r["label"], r["class"], r["status"]) for r in rows] == [
        ("k", 3, "b", "empty_prediction"),
        ("k", 1, "a", "ok"),
    ]
    assert rows[1]["dice"] == 1
    assert rows[1]["hd95_mm"] == 0
    assert math.isnan(rows[0]["volume_ml_reference"])


def test_accepts_tensors_and_whole_floats():
    mask = torch.zeros(8, 8)
    mask[2:4, 2:4] = 1
    assert case_metrics(mask, mask.numpy().astype(bool), {1: "x"}, 1.0)[0]["dice"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": np.zeros((4, 5), int)}, "same shape"),
        ({"prediction": np.full((4, 4), 0.5)}, "prediction must hold integer labels"),
        ({"prediction": np.zeros((1, 1, 4, 4), int)}, "prediction must have shape"),
        ({"labels": {0: "background"}}, "at least one foreground class"),
        ({"labels": {1: "a", 2: "a"}}, "name of its own"),
        ({"spacing": (1.0, 1.0, 1.0)}, "one value per image axis"),
        ({"spacing": (1.0, 0.0)}, "positive and finite"),
        ({"spacing": (1.0, float("nan"))}, "positive and finite"),
    ],
)
def test_ill_arguments(change, message):
    arguments = {"prediction": np.zeros((4, 4), int), "reference": np.zeros((4, 4), int), "labels": {1: "x"}}
    with pytest.raises(ValueError, match=message):
        case_metrics(**({**arguments, "spacing": 1.0} | change))


def test_surface_distances_refuse_empty_masks():
    with pytest.raises(ValueError, match="reference must hold at least one"):
        SurfaceDistances(np.ones((3, 3)), np.zeros((3, 3)))


def test_overlap_scores():
    assert dice_score([1, 1, 0, 0], [1, 0, 1, 0]) == 0.5
    assert jaccard_score([1, 1, 0, 0], [1, 0, 1, 0]) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="same shape"):
        dice_score([1], [1, 0])
