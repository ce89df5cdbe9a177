"""The package's reader for MONAI's loading transform, and MONAI's writer made atomic."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import FolderLayout, ImageReader, NibabelWriter
from monai.transforms import LoadImaged, SaveImaged
from monai.utils import ensure_tuple
from monai.utils.enums import MetaKeys, SpaceKeys

from monai_ssl.data.cases import PICTURES, result_suffix, split_suffix
from monai_ssl.data.formats import suffix_of
from monai_ssl.data.reading import read_channels, rounded, with_classes
from monai_ssl.data.scan import Scan
from monai_ssl.data.writing import write_picture
from monai_ssl.errors import DataError
from monai_ssl.files import atomic_path


class ScanReader(ImageReader):
    """Reads every format of :mod:`monai_ssl.data.reading`. It has no state: threads may share it.

    Args:
        label: the files are labels, see :func:`monai_ssl.data.reading.read_label`.
        label_map: of labels: stored value -> class.
        ignore_label: of labels: stored value of voxels that nobody knows.
    """

    def __init__(
        self, label: bool = False, label_map: Mapping[int, int] | None = None, ignore_label: int | None = None
    ) -> None:
        self.label, self.label_map, self.ignore_label = label, dict(label_map or {}), ignore_label

    def verify_suffix(self, filename: Any) -> bool:
        """Always true: no other reader of MONAI shall have a say, and errors come from this one."""
        return True

    def read(self, data: Any, **kwargs: Any) -> Scan:
        """One file, or one per channel.

        Raises:
            DataError: naming the file.
        """
        files = [str(file) for file in ensure_tuple(data)]
        scan = read_channels(files, self.label)
        if not self.label:
            return scan
        try:
            return with_classes(rounded(scan), self.label_map, self.ignore_label)
        except DataError as error:
            raise DataError(f"{files[0]}: {error}") from error

    def get_data(self, img: Scan) -> tuple[np.ndarray, dict[str, Any]]:
        """Voxels as stored and what MONAI's transforms need to know of them."""
        meta: dict[str, Any] = {
            MetaKeys.SPATIAL_SHAPE: np.asarray(img.spatial_shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan") if img.channel_axis is None else img.channel_axis,
        }
        if img.affine is not None:
            meta |= {
                MetaKeys.AFFINE: img.affine.copy(),
                MetaKeys.ORIGINAL_AFFINE: img.affine.copy(),
                MetaKeys.SPACE: SpaceKeys.RAS,
            }
        return img.voxels, meta


@contextmanager
def _without_foreign_readers() -> Iterator[None]:
    """MONAI builds all its readers first; what the one for DICOM says of a GPU decoder concerns nobody here."""
    plugin = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    level = plugin.level
    plugin.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "NvImgCodecPydicomReader", UserWarning)
            yield
    finally:
        plugin.setLevel(level)


class LoadImageScand(LoadImaged):
    """MONAI's ``LoadImaged`` with the reader of this package: file names -> tensors with affine, types as stored.

    Its name begins with LoadImage, because MONAI Deploy knows loading transforms by that.

    Args:
        keys: of the file names.
        label: they are labels: values within rounding of an integer become that integer.
        allow_missing_keys: see MONAI.
        label_map: of labels: stored value -> class.
        ignore_label: of labels: stored value of voxels that become :data:`~monai_ssl.labels.IGNORE_LABEL`.

    Example:
        >>> load = LoadImageScand("image")
        >>> load({"image": "scan.mha"})  # doctest: +SKIP
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        label: bool = False,
        allow_missing_keys: bool = False,
        label_map: Mapping[int, int] | None = None,
        ignore_label: int | None = None,
    ) -> None:
        with _without_foreign_readers():
            super().__init__(keys, image_only=True, dtype=None, allow_missing_keys=allow_missing_keys)  # type: ignore[arg-type]
        self.register(ScanReader(label, label_map, ignore_label))  # the last one registered is asked first


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's NIfTI writer; the file appears under its name only when it is complete.

    A volume of one slice stays a volume, where MONAI's drops every last axis of size 1. Nothing is resampled, and the
    header holds the grid and no text.
    """

    def set_data_array(
        self, data_array: Any, channel_dim: int | None = 0, squeeze_end_dims: bool = True, **kwargs: Any
    ) -> None:
        super().set_data_array(data_array, channel_dim, squeeze_end_dims, **kwargs)
        if channel_dim == 0 and squeeze_end_dims and data_array.shape[0] == 1:
            self.data_obj = self.data_obj.reshape(data_array.shape[1:])

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, resample: bool = False, **options: Any) -> None:
        """Where the voxels lie. MONAI's own method would resample pictures, which state no place."""
        if resample:
            super().set_metadata(meta_dict, resample, **options)
        else:
            self.affine = (meta_dict or {}).get(MetaKeys.AFFINE)

    def write(self, filename: Any, verbose: bool = False, **kwargs: Any) -> None:
        with atomic_path(filename) as temporary:
            super().write(temporary, verbose=verbose, **kwargs)


class ResultWriter(AtomicNibabelWriter):
    """NIfTI, or a picture where the file's name says so: rows are y and columns x, as in the picture that was read."""

    def write(self, filename: Any, verbose: bool = False, **kwargs: Any) -> None:
        try:
            if suffix_of(Path(filename).name) in PICTURES:
                write_picture(filename, np.asarray(self.data_obj).astype(np.uint8))
            else:
                super().write(filename, verbose=verbose, **kwargs)
        except OSError as error:
            _failed.reason = error
            raise


_failed = threading.local()


class SaveImageResultd(SaveImaged):
    """MONAI's ``SaveImaged`` with :class:`ResultWriter`, which says why a file could not be written.

    MONAI tries all writers and keeps what each raised as the text of its traceback: a full disk, or a folder that is
    read-only, would be a missing library. Threads may share it.

    Raises:
        OSError: naming the file.
    """

    def __call__(self, data: Any) -> Any:
        _failed.reason = None
        try:
            return super().__call__(data)
        except RuntimeError:
            reason, _failed.reason = _failed.reason, None
            if reason is None:
                raise
        raise reason


class ResultLayout(FolderLayout):
    """Names of results: ``output_dir/<place below data_root_dir>/<stem>_<postfix><suffix>``.

    The suffix is that of NIfTI; of labels of a picture that of the picture, see
    :func:`monai_ssl.data.cases.result_suffix`.

    Args:
        output_dir: folder of the results.
        postfix: after the image's name.
        data_root_dir: folder whose layout is repeated; empty: none is.
    """

    def __init__(self, output_dir: str, postfix: str, data_root_dir: str = "") -> None:
        super().__init__(output_dir, postfix, makedirs=True, data_root_dir=data_root_dir)

    def filename(self, subject: Any = "subject", idx: Any = None, **kwargs: Any) -> str:
        """File of the result of one image, whose folder is made."""
        image = Path(str(subject))
        place = os.path.relpath(image.parent, self.data_root_dir) if self.data_root_dir else ""
        folder = os.path.normpath(os.path.join(self.output_dir, place))
        if self.makedirs:
            os.makedirs(folder, exist_ok=True)
        stem, known = split_suffix(image.name)
        if not known and not image.is_dir():  # a format without a name here; the name of a series may hold dots
            stem = Path(stem.removesuffix(".gz")).stem
        suffix = result_suffix(image.name) if self.postfix == "seg" else ".nii.gz"
        extra = "" if idx is None else f"_{idx}"
        return os.path.join(folder, f"{stem}_{self.postfix}{extra}{suffix}")
