"""From a preset to transforms: one definition for training, validation, inference and evaluation."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    KeepLargestConnectedComponentd,
    NormalizeIntensityd,
    Orientation,
    Orientationd,
    RandAdjustContrastd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
    RandSpatialCropd,
    Resize,
    SaveImaged,
    ScaleIntensityd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
    SpatialPadd,
    Transform,
)

from monai_ssl.data.cases import image_files
from monai_ssl.data.guard import CheckCase, LabelWhereImageIsd, MarkUnknownd, RefuseUnknownd
from monai_ssl.data.monai_io import LoadImageScand, ResultLayout, ResultWriter, SaveImageResultd
from monai_ssl.data.preset import Preset
from monai_ssl.errors import DataError
from monai_ssl.transforms import (
    CenterCropd,
    DispatchByDimensiond,
    LabelsOnImageGridd,
    LiteraturePadd,
    NormalizeNonzerod,
    PadUnknownd,
    RandCoilFieldd,
    RandLiteratureCropd,
    RandPatchd,
    RandRotateFlipd,
    RandSliceRotateFlipd,
    RandSliceSelectd,
    UntilKnown,
)

# what chooses the place that a patch shows
_CROPS = (RandLiteratureCropd, RandPatchd, RandSpatialCropd)


class Preparation(Compose):
    """Deterministic transforms of a preset that know what their result depends on, and how large it is.

    Args:
        transforms: the steps.
        preset: of which they were made.
        padded: for training, see :func:`monai_ssl.data.footprint.footprint`.
        label: whether they prepare labels.

    Attributes:
        content: text that is equal for two preparations with equal results; a chain of other transforms has none.
        slices: what is prepared is read slice by slice.
    """

    def __init__(self, transforms: Sequence[Transform], preset: Preset, padded: bool, label: bool) -> None:
        super().__init__(list(transforms))
        self.preset, self.padded = preset, padded
        self.content = json.dumps([padded, label, preset.model_dump(mode="json")], sort_keys=True)
        self.slices = preset.spatial_dims == 2


def preprocessing(preset: Preset, label: bool = False) -> Compose:
    """Deterministic transforms of the image and, for training, of the label (cached).

    Args:
        label: also transform ``label`` along with the image (training). Validation and evaluation keep the
            label on its original grid: see :func:`validation_preprocessing`.
    """
    return Compose(_preprocessing(preset, ["image", "label"] if label else ["image"]))


def _preprocessing(preset: Preset, keys: list[str]) -> list[Transform]:
    steps: list[Transform] = [
        *(_label_loader(preset) if key == "label" else LoadImageScand(key) for key in keys),
        EnsureChannelFirstd(keys),
        EnsureTyped("image", dtype="float32"),
        CheckCase(preset),
        *([LabelWhereImageIsd(), MarkUnknownd(preset)] if "label" in keys else []),
        *_grid(preset, keys),
    ]
    return steps + _intensity(preset)


def resampled_label(label: torch.Tensor, preset: Preset) -> torch.Tensor:
    """A label on the grid on which a training sees it.

    Args:
        label: MetaTensor (1, X, Y[, Z]) with the affine of its scan.
        preset: of the data.
    """
    resampled: torch.Tensor = Compose(_grid(preset, ["label"]))({"label": label})["label"]
    return resampled


def _grid(preset: Preset, keys: list[str]) -> list[Transform]:
    """What moves, resamples and crops voxels before any patch is drawn."""
    mode = ["nearest" if key == "label" else "bilinear" for key in keys]
    steps: list[Transform] = []
    if preset.orientation is not None:
        codes = preset.orientation
        if preset.spatial_dims == 3:
            steps.append(Orientationd(keys, axcodes=codes, labels=None))
        else:
            steps.append(
                DispatchByDimensiond(keys, Orientation(codes[:2], labels=None), Orientation(codes, labels=None))
            )
    if preset.spacing is not None:
        # -1: the distance between the slices of a volume stays
        steps.append(Spacingd(keys, pixdim=(*preset.spacing, -1.0)[:3], mode=mode))
    if preset.center_crop is not None:
        steps.append(CenterCropd(keys, preset.center_crop))
    if preset.resize is not None:
        steps.append(
            DispatchByDimensiond(
                keys, Resize(preset.resize, mode="nearest-exact"), Resize((*preset.resize, -1), mode="nearest-exact")
            )
        )
    return steps


def _label_loader(preset: Preset, allow_missing_keys: bool = False) -> LoadImageScand:
    return LoadImageScand(
        "label", True, allow_missing_keys, label_map=preset.label_map, ignore_label=preset.ignore_label
    )


def _intensity(preset: Preset) -> list[Transform]:
    i = preset.intensity
    if i.policy == "as_stored":
        return []
    clip: list[Transform] = []
    if i.window is not None:
        clip.append(ScaleIntensityRanged("image", *i.window, -1.0, 1.0, clip=True))
    if i.policy == "window":
        return clip
    if i.policy == "minmax":
        return [ScaleIntensityd("image", 0.0, 1.0, channel_wise=True)]
    if i.nonzero:
        return [NormalizeNonzerod("image", i.percentiles if i.policy == "robust" else (0.0, 100.0))]
    steps: list[Transform] = [*clip, NormalizeIntensityd("image", channel_wise=True)]
    if i.policy == "robust":
        low, high = i.percentiles
        steps.insert(0, ScaleIntensityRangePercentilesd(
            "image", low, high, 0.0, 1.0, clip=True, channel_wise=True))  # fmt: skip
    return steps


def validation_preprocessing(preset: Preset) -> Compose:
    """:func:`preprocessing` of the image, and the label as it is on disk: scores are on the original grid."""
    steps = [
        _label_loader(preset, allow_missing_keys=True),
        EnsureChannelFirstd("label", allow_missing_keys=True),
        *_preprocessing(preset, ["image"]),
        MarkUnknownd(preset, by_class=False),
    ]
    return Preparation(steps, preset, padded=False, label=True)


def postprocessing(
    preset: Preset,
    preprocessing: Compose,
    output_dir: str | None = None,
    probabilities: bool = False,
    data_root: str = "",
) -> Compose:
    """Class probabilities on the network's grid -> label map on the grid of the file that was read.

    Args:
        preprocessing: the very object that prepared the images (its spatial transforms are inverted).
        output_dir: also write ``<name>_seg.nii.gz`` there (uint8, grid and affine of the image).
        probabilities: also keep, and with ``output_dir`` write, ``<name>_prob.nii.gz`` (float32, channel = class).
        data_root: folder whose layout is repeated below ``output_dir``, so that equal file names do not collide.
    """
    steps: list[Transform] = [LabelsOnImageGridd(preprocessing, probabilities=probabilities), *cleaning(preset)]
    if output_dir is not None:
        steps.append(saver("pred", "seg", output_dir, data_root))
        if probabilities:
            steps.append(saver("prob", "prob", output_dir, data_root))
    return Compose(steps)


def cleaning(preset: Preset) -> list[Transform]:
    """What is done to a label map ``pred``."""
    if not preset.largest_component:
        return []
    classes = list(range(1, preset.n_classes))
    return [KeepLargestConnectedComponentd("pred", applied_labels=classes, independent=True)]


def saver(key: str, postfix: str, output_dir: str, data_root: str = "") -> SaveImaged:
    """Writes ``<name>_<postfix>.nii.gz``: uint8 for ``seg``, else float32; of a picture, ``seg`` is a picture.

    Args:
        key: what is written.
        postfix: after the image's name.
        output_dir: folder.
        data_root: folder whose layout is repeated below it; of one image: its folder.
    """
    if Path(data_root).is_file():  # one image: its folder, or the result would land next to output_dir
        data_root = str(Path(data_root).parent)
    return SaveImageResultd(
        key,
        output_dtype="uint8" if postfix == "seg" else "float32",
        resample=False,
        folder_layout=ResultLayout(output_dir, postfix, data_root),
        writer=ResultWriter,
        print_log=False,
    )


def saved_file(step: SaveImaged, entry: Mapping[str, Any]) -> Path:
    """The file that a saver writes for a case.

    Args:
        step: any ``SaveImaged`` that names its files after the image.
        entry: ``{"image": file or files}``.

    Example:
        >>> saved_file(saver("pred", "seg", "/out", "/scans"), {"image": "/scans/a/b.nii.gz"}).as_posix()
        '/out/a/b_seg.nii.gz'
    """
    layout: Any = copy.copy(step.saver.folder_layout)
    layout.makedirs = False
    return Path(layout.filename(subject=image_files(entry)[0]))


def plausible_flips(preset: Preset) -> list[tuple[int, ...]]:
    """Every combination of axes along which the training mirrored its patches: the views of test-time augmentation.

    Raises:
        DataError: when there is none.

    Example:
        >>> from monai_ssl.data import load_preset
        >>> plausible_flips(load_preset("phantom"))
        [(0,), (1,), (0, 1)]
    """
    literature = preset.augmentation.policy == "literature"
    axes = (0, 1) if literature else preset.augmentation.flip_axes
    flips = [flip for n in range(1, len(axes) + 1) for flip in itertools.combinations(sorted(set(axes)), n)]
    if not flips:
        raise DataError(
            f"tta: the preset {preset.name} allows no mirroring (augmentation.flip_axes is empty), so there is nothing "
            "to average over; leave --tta away"
        )
    return flips


def training_preprocessing(preset: Preset, label: bool = True, drawn: bool = False) -> Compose:
    """Everything deterministic of the training chain: preprocessing, padding to the patch, plain tensors.

    With ``spatial_dims: 2`` a volume stays a volume here: its slices are drawn and padded one by one.

    Args:
        preset: of the data.
        label: prepare labels, too.
        drawn: the labels were drawn by a network: one that says nothing teaches nothing, and is no mistake.
    """
    keys = ["image", "label"] if label else ["image"]
    steps = _preprocessing(preset, keys)
    if label and not drawn:
        steps.append(RefuseUnknownd(preset))
    if preset.spatial_dims == 3:
        steps.append(_padding(preset, keys))
    steps.append(EnsureTyped("image", dtype="float32", track_meta=False))
    if label:
        steps.append(EnsureTyped("label", dtype="uint8", track_meta=False))
    return Preparation(steps, preset, padded=True, label=label)


def _padding(preset: Preset, keys: list[str]) -> Transform:
    literature = preset.augmentation.policy == "literature" and preset.spatial_dims == 3
    kind = LiteraturePadd if literature else SpatialPadd
    padding: Transform = kind(keys, preset.patch_size)
    return PadUnknownd(padding, kind("label", preset.patch_size)) if "label" in keys else padding


def random_transforms(preset: Preset, label: bool = True) -> list[Transform]:
    """Random transforms of one training item, ending in a patch of ``patch_size``.

    With ``spatial_dims: 2`` they begin with a random slice of the volume. A place where the label is ignored everywhere
    is drawn again.
    """
    keys = ["image", "label"] if label else ["image"]
    steps = [UntilKnown(step) if label and isinstance(step, _CROPS) else step for step in _augmentation(preset, keys)]
    if preset.spatial_dims == 3:
        return steps
    chosen = RandSliceSelectd(keys)
    return [UntilKnown(chosen) if label else chosen, _padding(preset, keys), *steps]


def _augmentation(preset: Preset, keys: list[str]) -> list[Transform]:
    a = preset.augmentation
    if a.policy == "literature" and preset.spatial_dims == 3:
        return [RandRotateFlipd(keys), RandLiteratureCropd(keys, preset.patch_size)]
    crop = RandSpatialCropd(keys, preset.patch_size, random_size=False)
    if a.policy == "literature":
        return [RandSliceRotateFlipd(keys), crop]
    if a.policy == "none":
        return [crop]
    turns = a.rotation_degrees > 0 or a.scale > 0
    steps: list[Transform] = [
        RandPatchd(
            keys,
            preset.patch_size,
            prob=a.affine_probability if turns else 0.0,
            rotate_range=math.radians(a.rotation_degrees),
            scale_range=a.scale,
            mode=["bilinear", "nearest"][: len(keys)],
        )
    ]
    if a.rotate90_axes is not None:
        # on the whole volume, before the crop: a turned patch need not be square
        steps.insert(0, RandRotate90d(keys, prob=0.5, max_k=3, spatial_axes=a.rotate90_axes))
    steps += [RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in a.flip_axes]
    p = a.intensity_probability
    if p > 0:
        steps += [
            RandGaussianNoised("image", prob=p, std=0.1),
            RandGaussianSmoothd("image", prob=p, sigma_x=(0.3, 1.0), sigma_y=(0.3, 1.0), sigma_z=(0.3, 1.0)),
            RandScaleIntensityd("image", factors=0.2, prob=p),
            RandShiftIntensityd("image", offsets=0.2, prob=p),
            RandAdjustContrastd("image", prob=p, gamma=(0.7, 1.5)),
        ]
    linear = "bilinear" if preset.spatial_dims == 2 else "trilinear"
    further: list[tuple[float, Transform]] = [
        (a.bias_field_probability, RandCoilFieldd("image", prob=a.bias_field_probability)),
        (
            a.inverted_gamma_probability,
            RandAdjustContrastd(
                "image", prob=a.inverted_gamma_probability, gamma=(0.7, 1.5), invert_image=True, retain_stats=True
            ),
        ),
        (
            a.low_resolution_probability,
            RandSimulateLowResolutiond("image", prob=a.low_resolution_probability, upsample_mode=linear),
        ),
    ]
    # one that is off is left out: it would draw numbers all the same, and change what the others draw
    return steps + [step for probability, step in further if probability > 0]


def strong_transforms(preset: Preset) -> list[Transform]:
    """Transforms of the key ``image`` that turn a weak view into a strong one, see :class:`preset.StrongView`.

    They change only intensities: voxel for voxel the strong view shows the same place as the weak one, so that a label
    made from one holds for the other. Flips, crops and rotations belong to both views and have been made before.

    Args:
        preset: whose block ``strong_view`` tells the strengths.

    Example:
        >>> from monai_ssl.data import load_preset
        >>> len(strong_transforms(load_preset("left_atrium")))
        5
    """
    v = preset.strong_view
    sigma = (0.3, v.blur)
    return [
        RandScaleIntensityd("image", factors=v.scale, prob=v.probability, channel_wise=True),
        RandShiftIntensityd("image", offsets=v.shift, prob=v.probability, channel_wise=True),
        RandAdjustContrastd("image", prob=v.probability, gamma=v.gamma),
        RandGaussianSmoothd("image", prob=v.probability, sigma_x=sigma, sigma_y=sigma, sigma_z=sigma),
        RandGaussianNoised("image", prob=v.probability, std=v.noise, sample_std=True),
    ]
