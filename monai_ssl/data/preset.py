"""Dataset presets: every number that belongs to the data, in one YAML file per data set.

A preset gives a bundle its shapes, classes, intensity handling, augmentation, windows and published protocol, so that
methods x datasets need no copies of configs. ``load_preset("left_atrium")`` reads one that ships with the package,
``load_preset("my/preset.yaml")`` your own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from monai_ssl.data.yaml_mapping import read_mapping
from monai_ssl.errors import DataError, one_line
from monai_ssl.labels import IGNORE_LABEL

PRESET_DIR = Path(__file__).parent / "presets"
# one patch of so many values takes 1 GB in float32, before any layer
MOST_PATCH_VOXELS = 2**28

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
Millimeters = Annotated[float, Field(gt=0, le=1000)]
Axis = Annotated[int, Field(ge=0, le=2)]
Voxels = Annotated[int, Field(ge=0, le=2**16)]
Iterations = Annotated[int, Field(ge=1, le=10**9)]
Rows = Annotated[int, Field(ge=0, le=2**16)]


class _Strict(BaseModel):
    # built when the first preset is validated: who misspells a name has the answer before
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, allow_inf_nan=False)


class Intensity(_Strict):
    """How gray values are normalized, volume by volume.

    ``as_stored``: untouched. ``zscore``: zero mean, unit variance, after clipping to ``window`` where one is given.
    ``robust``: clipped to the two percentiles, then z-scored. ``minmax``: mapped to [0, 1]. ``window``: ``window`` (for
    example in Hounsfield units) is mapped to [-1, 1] and clipped. With ``nonzero`` the statistics of ``robust`` and
    ``zscore`` are those of the voxels that are not 0 (skull-stripped brains).
    """

    policy: Literal["as_stored", "zscore", "robust", "minmax", "window"] = "robust"
    percentiles: tuple[float, float] = (0.5, 99.5)
    window: tuple[float, float] | None = None
    nonzero: bool = False

    @model_validator(mode="after")
    def _window(self) -> Intensity:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"intensity.percentiles must be 0 <= low < high <= 100, got {[low, high]}")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"intensity.window must be [low, high] with low < high, got {list(self.window)}")
        if self.policy == "window" and self.window is None:
            raise ValueError("intensity.policy 'window' needs intensity.window: [low, high]")
        if self.window is not None and (self.policy not in ("window", "zscore") or self.nonzero):
            raise ValueError(f"intensity.window goes with policy 'window' or 'zscore', not with {self.policy!r}")
        if self.nonzero and self.policy not in ("robust", "zscore"):
            raise ValueError(f"intensity.nonzero goes with policy 'robust' or 'zscore', not with {self.policy!r}")
        return self


class Augmentation(_Strict):
    """Random transforms of the training patches.

    ``literature``: rotation by k * 90 degrees in the first plane, then a flip that is ALWAYS applied, then the crop
    (the identity never occurs). In 2D, half of the slices get that, a quarter a small rotation, a quarter nothing.
    ``practical``: small affine, flips along ``flip_axes`` with probability 0.5, quarter turns in ``rotate90_axes`` with
    probability 0.5, noise, blur, brightness, contrast. ``none``: crop only.

    Three more of ``practical``, off unless given a probability. ``low_resolution_probability``: down to between half
    and all of the voxels per axis, and back. ``inverted_gamma_probability``: the gamma curve of the inverted
    intensities, mean and standard deviation kept. ``bias_field_probability``: a smooth field, as surface coils leave,
    see :class:`~monai_ssl.transforms.RandCoilFieldd`.
    """

    policy: Literal["literature", "practical", "none"] = "practical"
    flip_axes: tuple[Axis, ...] = ()
    rotate90_axes: tuple[Axis, Axis] | None = None
    rotation_degrees: float = Field(default=10.0, ge=0, le=180)
    scale: float = Field(default=0.1, ge=0, lt=1)
    affine_probability: float = Field(default=0.5, ge=0, le=1)
    intensity_probability: float = Field(default=0.3, ge=0, le=1)
    low_resolution_probability: float = Field(default=0.0, ge=0, le=1)
    inverted_gamma_probability: float = Field(default=0.0, ge=0, le=1)
    bias_field_probability: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _axes(self) -> Augmentation:
        for key in ("flip_axes", "rotate90_axes"):
            axes = getattr(self, key) or ()
            if len(set(axes)) < len(axes):
                raise ValueError(f"augmentation.{key} must name each axis once, got {list(axes)}")
        return self


class StrongView(_Strict):
    """Strong view of an unlabeled patch, for methods that compare it with the weak one (``unlabeled["strong"]``).

    Intensity transforms on top of the augmented patch, 2D and 3D alike: every voxel keeps its place. Each is applied
    with ``probability``. The strengths are for intensities of about unit variance.

    ``noise``: standard deviation of Gaussian noise, up to this. ``blur``: sigma of Gaussian blur in voxels, from 0.3 to
    this. ``scale``, ``shift``: contrast and brightness, channel by channel: times 1 +- scale, plus +-shift. ``gamma``:
    range of the exponent.
    """

    probability: float = Field(default=0.8, ge=0, le=1)
    noise: float = Field(default=0.2, ge=0, le=100)
    blur: float = Field(default=1.0, ge=0.3, le=100)
    scale: float = Field(default=0.4, ge=0, lt=1)
    shift: float = Field(default=0.4, ge=0, le=100)
    gamma: tuple[float, float] = (0.5, 2.0)

    @model_validator(mode="after")
    def _range(self) -> StrongView:
        if not 0 < self.gamma[0] <= self.gamma[1]:
            raise ValueError(f"strong_view.gamma must be a range [low, high] of positive numbers, got {self.gamma}")
        return self


class Window(_Strict):
    """Sliding window at inference: exact ``stride`` in voxels (the literature's way) or ``overlap`` in [0, 1).

    ``tta``: the mean of mirrored views, along the axes that ``augmentation`` mirrors, unless a command says otherwise;
    each view costs as much as the image itself.
    """

    stride: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    overlap: float = Field(default=0.25, ge=0, lt=1)
    mode: Literal["constant", "gaussian"] = "gaussian"
    batch_size: int = Field(default=1, ge=1, le=2**16)
    tta: bool = False


class Training(_Strict):
    """Recommended protocol; what papers publish of single methods is in the bundles, see ``Preset.published``."""

    max_iterations: Iterations = 6000
    epoch_length: Iterations = 100
    val_interval: Iterations = Field(default=10, description="in epochs of epoch_length iterations")
    labeled_batch_size: Rows = Field(default=2, ge=1)
    unlabeled_batch_size: Rows = 2
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.01, gt=0, le=1e6)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["step", "poly", "cosine", "constant"] = "step"
    milestones: tuple[float, ...] = (2500 / 6000, 5000 / 6000)
    warmup: float = Field(default=0.0, ge=0, lt=1, description="share of the iterations with a linear warm-up")
    clip_gradient_norm: float | None = Field(default=None, gt=0)
    amp: Literal["auto", "off", "bf16", "fp16"] = Field(default="auto", description="precision; off: float32")

    @field_validator("amp", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # what YAML makes of the word

    @model_validator(mode="after")
    def _milestones(self) -> Training:
        shares = list(self.milestones)
        if any(not 0 < share <= 1 for share in shares) or shares != sorted(set(shares)):
            raise ValueError(f"training.milestones must be rising shares of max_iterations in (0, 1], got {shares}")
        return self


class Preset(_Strict):
    """One data set in one flavor, validated; see the module's docstring and ``data/presets/*.yaml`` for examples.

    Attributes:
        name, description, flavor: what it is.
        spatial_dims: of network and patches. 2: images are 2D files, or volumes whose slices along the LAST axis (after
            ``orientation``) train one by one and are restacked, so that results are on the volume.
        channels: one name per image channel.
        modality: for the bundle's metadata, for example ``MR`` or ``CT``.
        labels: class index -> name; 0 is the background; indices 0..n-1 without gap.
        label_map: value in label files -> class, where files hold other numbers, for example ``{255: 1}`` for masks of
            0 and 255; values that it does not name are classes already. Results hold classes.
        ignore_label: value in label files of voxels whose class nobody knows, for example 255 or -1; no loss and no
            metric looks at them. None: there is none, and such a value is an error.
        orientation: axis codes to which images are brought (``RAS``), or None for arrays as stored.
        spacing: millimeters per axis to which images are resampled (2D: in plane), or None for the stored grid.
        resize: 2D only: pixels per axis to which every slice is resized (nearest pixel), as the 2D literature does.
            Distorts, and forgets the pixel size; None for the stored grid.
        center_crop: millimeters per axis of a field of view around the center, the same in training and inference;
            null entries keep the axis. Finds no organ and needs no label: choose it generously. None: whole image.
        patch_size: voxels per axis.
        slice_sampling: of 2D networks on volumes. ``volume``: a volume, then one of its slices. ``slice``: every slice
            of all volumes equally often, as in the 2D literature: a long stack counts more.
        intensity, augmentation, strong_view, window, training: see the classes of these names.
        largest_component: keep the largest component of each class (changes results: see the literature's tables).
        published: a method trains what its paper trained on this data set (``literature`` in its ``bundle.yaml``),
            where there is one; ``training`` otherwise. True in the flavor ``literature`` of the shipped presets.
        codes: class index -> (code value, coding scheme, meaning), as DICOM SEG names a segment's type, for example
            ``[82471001, SCT, Left atrium]``; classes without one get a private code.
    """

    name: Name
    description: str = ""
    flavor: Name = "practical"
    spatial_dims: Literal[2, 3] = 3
    channels: Annotated[tuple[Name, ...], Field(min_length=1)] = ("image",)
    modality: Name = "MR"
    labels: dict[int, Name]
    label_map: dict[Annotated[int, Field(ge=0, le=2**31 - 1)], int] = Field(default={})
    ignore_label: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    orientation: str | None = "RAS"
    spacing: tuple[Millimeters, ...] | None = None
    resize: tuple[Annotated[Voxels, Field(ge=1)], Annotated[Voxels, Field(ge=1)]] | None = None
    center_crop: tuple[float | None, ...] | None = None
    patch_size: tuple[Voxels, ...]
    slice_sampling: Literal["volume", "slice"] = "volume"
    intensity: Intensity = Field(default_factory=Intensity)
    augmentation: Augmentation = Field(default_factory=Augmentation)
    strong_view: StrongView = Field(default_factory=StrongView)
    window: Window = Field(default_factory=Window)
    training: Training = Field(default_factory=Training)
    published: bool = False
    largest_component: bool = False
    codes: dict[int, tuple[str, str, str]] = Field(default={}, description="of the classes, for DICOM")

    @model_validator(mode="after")
    def _consistent(self) -> Preset:
        if sorted(self.labels) != list(range(len(self.labels))) or len(self.labels) < 2:
            raise ValueError(
                f"labels must be 0 (background), 1, ... without gap, at least two, got {list(self.labels)}"
            )
        if unknown := [target for target in self.label_map.values() if target not in self.labels]:
            raise ValueError(f"label_map must map to classes of 'labels' {list(self.labels)}, got {unknown[0]}")
        if len(self.labels) > IGNORE_LABEL:
            raise ValueError(f"labels must be at most {IGNORE_LABEL} classes, got {len(self.labels)}")
        self._check_ignore_label()
        for key, names in (("labels", list(self.labels.values())), ("channels", list(self.channels))):
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise ValueError(f"{key} must have different names, got {twice[0]!r} {names.count(twice[0])} times")
        axes = [next((k for k, pair in enumerate(("LR", "AP", "IS")) if code in pair), None)
                for code in ("RAS" if self.orientation is None else self.orientation)]  # fmt: skip
        if sorted(axes, key=str) != [0, 1, 2]:
            raise ValueError(
                "orientation must be three axis codes, one each of L/R, A/P and I/S, as RAS, or null for the stored "
                f"grid, got {self.orientation!r}"
            )
        for index, (value, scheme, meaning) in self.codes.items():
            # VRs of a coded entry: SH, SH, LO
            if (
                index not in self.labels
                or index == 0
                or not (0 < len(value) <= 16 >= len(scheme) > 0 < len(meaning) <= 64)
            ):
                raise ValueError(
                    "codes: must map a foreground class to (value of 1-16 characters, scheme of 1-16, meaning of "
                    f"1-64), got {index}: {(value, scheme, meaning)}"
                )
        for key in ("patch_size", "spacing"):
            value = getattr(self, key)
            if value is not None and len(value) != self.spatial_dims:
                raise ValueError(f"{key} must have {self.spatial_dims} entries (spatial_dims), got {list(value)}")
        if self.slice_sampling == "slice" and self.spatial_dims == 3:
            raise ValueError("slice_sampling 'slice' is for spatial_dims 2; remove it")
        if self.resize is not None and (self.spatial_dims == 3 or self.spacing is not None):
            raise ValueError("resize is for spatial_dims 2 and goes without spacing; remove one of them")
        if self.center_crop is not None and (
            len(self.center_crop) > 3 or any(size is not None and size <= 0 for size in self.center_crop)
        ):
            raise ValueError(
                f"center_crop must be positive millimeters or null, up to 3 entries, got {list(self.center_crop)}"
            )
        if self.window.stride is not None and len(self.window.stride) != self.spatial_dims:
            raise ValueError(f"window.stride must have {self.spatial_dims} entries, got {list(self.window.stride)}")
        for key in ("flip_axes", "rotate90_axes"):
            beyond = [axis for axis in getattr(self.augmentation, key) or () if axis >= self.spatial_dims]
            if beyond:
                raise ValueError(f"augmentation.{key} must be axes 0 to {self.spatial_dims - 1}, got {beyond[0]}")
        if any(p < 16 or p % 16 for p in self.patch_size):
            raise ValueError(
                f"patch_size must be multiples of 16 (four halvings in the networks), got {list(self.patch_size)}"
            )
        if math.prod(self.patch_size) > MOST_PATCH_VOXELS:
            raise ValueError(
                f"patch_size must not exceed {MOST_PATCH_VOXELS} voxels in all (1 GB), got {list(self.patch_size)}"
            )
        stride = self.window.stride
        if stride is not None and any(step > side for step, side in zip(stride, self.patch_size, strict=True)):
            raise ValueError(
                f"window.stride must not exceed patch_size {list(self.patch_size)}, or voxels are left out, got "
                f"{list(stride)}"
            )
        if self.window.tta and self.augmentation.policy != "literature" and not self.augmentation.flip_axes:
            raise ValueError(
                "window.tta averages over the mirrored views that augmentation.flip_axes names, which is empty; name "
                "axes there, or set window.tta to false"
            )
        turned = (0, 1) if self.augmentation.policy == "literature" else self.augmentation.rotate90_axes
        if turned is not None and self.patch_size[turned[0]] != self.patch_size[turned[1]]:
            raise ValueError(
                f"patch_size must be equal along axes {list(turned)}, which the augmentation turns by 90 degrees, got "
                f"{list(self.patch_size)}"
            )
        return self

    def _check_ignore_label(self) -> None:
        value = self.ignore_label
        if value in self.label_map:
            raise ValueError(f"ignore_label must be a value that label_map does not name, got {value}; remove it there")
        if value in self.labels and value not in self.label_map.values():
            raise ValueError(
                f"ignore_label must be no class, got {value} ({self.labels[value]}); where files hold that class as "
                f"another value, name it in label_map, as {{2: {value}}}"
            )

    @property
    def n_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.labels)

    @property
    def in_channels(self) -> int:
        return len(self.channels)


def available_presets() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))


def load_preset(
    name: str | Path | Mapping[str, Any],
    flavor: str | None = None,
    literature: Mapping[str, Mapping[str, Any]] | None = None,
    **overrides: Any,
) -> Preset:
    """Read and validate a preset.

    Args:
        name: a name of :func:`available_presets`, the path of your own YAML, or a preset's content (packaged bundles
            carry it in their configs).
        flavor: ``"literature"`` (as published) or ``"practical"`` (what a clinic should use), where the file offers
            ``flavors``; None takes the file's ``default_flavor``.
        literature: what a method's paper publishes, see :func:`monai_ssl.data.training_protocol`. Of the entry for
            this data set, ``preset`` holds keys of the preset in which the paper differs from the others (SS-Net's
            largest component); they count where the preset is ``published``.
        **overrides: fields to replace; nested mappings are merged.

    Raises:
        DataError: when the file does not exist, is no YAML mapping, has an unknown key or an invalid value; the message
            names the file and the key.

    Example:
        >>> preset = load_preset("left_atrium", flavor="literature")
        >>> preset.patch_size, preset.n_classes, preset.window.stride
        ((112, 112, 80), 2, (18, 18, 4))
    """
    if isinstance(name, Mapping):
        path, content = Path("dataset"), dict(name)
    else:
        path, content = _read(name)
    content = _american(content, path)
    flavors = content.pop("flavors", {}) or {}
    if not isinstance(flavors, dict) or not all(isinstance(v, dict) or v is None for v in flavors.values()):
        raise DataError(f"{path}: flavors: must map names to the keys that differ, got {_received(flavors)}")
    default = content.pop("default_flavor", next(iter(flavors), None))
    chosen = flavor or default
    if chosen is not None and not isinstance(chosen, str):
        raise DataError(f"{path}: default_flavor: must be a name, got {_received(chosen)}")
    if flavors and chosen not in flavors:
        raise DataError(f"flavor: {path.name} offers {', '.join(flavors)}, got {chosen!r}")
    if flavors:
        content = _merge(content, flavors[chosen] or {})
        content["flavor"] = chosen
    elif flavor is not None:
        # one flavor only: the request is met if it is the one that the file says it is
        stated = content.get("flavor", "practical")
        if flavor != stated:
            raise DataError(f"flavor: {path.name} offers only {stated!r}, got {flavor!r}")
    content.setdefault("name", path.stem)
    if content.get("published") is True:
        content = _merge(content, dict((literature or {}).get(content["name"], {}).get("preset", {})))
    content = _merge(content, overrides)
    try:
        return Preset.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "preset"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown key; known keys are in the docstring of monai_ssl.data.preset.{type_hint(first['loc'])}"
        # values of whole mappings say nothing, and the messages of this module name their own
        got = "" if first["type"] == "value_error" else f" (got {_received(first.get('input'))})"
        raise DataError(f"{path}: {one_line(where, 100)}: {one_line(message, 600)}{got}") from None
    except RecursionError:
        raise DataError(f"{path}: a preset must not be nested so deeply; remove brackets") from None


def _received(value: Any) -> str:
    """A value for a message, in one short line."""
    if isinstance(value, (dict, list)) and len(value) > 20:
        return f"{type(value).__name__} with {len(value)} entries"
    try:
        return one_line(repr(value), 100)
    except (ValueError, RecursionError):  # an integer of thousands of digits, brackets in brackets
        return type(value).__name__


# British keys of version 0.1; they are read until the release after the next
_FORMER_KEYS = {
    "flavours": "flavors",
    "default_flavour": "default_flavor",
    "flavour": "flavor",
    "centre_crop": "center_crop",
}


def _american(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """``content`` with the keys of today's spelling, and a warning where it had others.

    Raises:
        DataError: when a key is there in both spellings.
    """
    for former, key in _FORMER_KEYS.items():
        if former in content:
            if key in content:
                raise DataError(f"{path}: {former}: is the old spelling of {key}, which is there too; remove one")
            warnings.warn(f"{path}: the key {former} is now spelled {key}", stacklevel=3)
            content = {(key if k == former else k): value for k, value in content.items()}
    flavors = content.get("flavors")
    if isinstance(flavors, dict):
        content["flavors"] = {k: _american(dict(v), path) if isinstance(v, dict) else v for k, v in flavors.items()}
    return content


def _read(name: str | Path) -> tuple[Path, dict[str, Any]]:
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        path = PRESET_DIR / f"{name}.yaml"
        if not path.is_file():
            raise DataError(
                f"dataset: must be one of {', '.join(available_presets())} or the path of a preset .yaml, got {name!r}"
            )
    return path, read_mapping(path, "a preset")


def type_hint(location: tuple[Any, ...]) -> str:
    """Name of the class that documents the keys at ``location`` of a preset."""
    names = {"intensity": "Intensity", "augmentation": "Augmentation", "strong_view": "StrongView",
             "window": "Window", "training": "Training"}  # fmt: skip
    return names.get(str(location[0]), "Preset") if len(location) > 1 else "Preset"


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def dump_preset(preset: Preset) -> str:
    """The preset as YAML, readable by :func:`load_preset` (one flavor)."""
    return yaml.safe_dump(preset.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
