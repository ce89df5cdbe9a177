"""Awkward headers, by format: what is read, what is said about it, and what is refused before memory is taken."""

from __future__ import annotations

import io
import struct

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_ssl.data import DataError
from monai_ssl.data.formats import suffix_of
from monai_ssl.data.formats.promise import check_promise
from monai_ssl.data.reading import count_values, read_label, read_scan

SHAPE = (6, 5, 4)
AFFINE = np.diag([2.0, 1.5, 3.0, 1.0])


def voxels(shape=SHAPE, dtype="int16"):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def nifti(path, array=None, affine=AFFINE, **fields):
    """A NIfTI file whose header fields are then set to ``fields``."""
    image = nib.Nifti1Image(voxels() if array is None else array, affine)
    for key, value in fields.items():
        image.header[key] = value
    raw = bytearray(image.to_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for key, value in fields.items():
        header[key] = value
    raw[:348] = header.binaryblock
    path.write_bytes(bytes(raw))
    return path


@pytest.mark.parametrize(
    ("code", "factor", "name"), [(1, 1000, "meters"), (3, 0.001, "micrometers"), (0, 1, ""), (2, 1, "")]
)
def test_units_become_millimeters_and_it_is_said(tmp_path, code, factor, name):
    scan = read_scan(nifti(tmp_path / "a.nii", xyzt_units=code))
    assert np.allclose(scan.affine[:3], AFFINE[:3] * factor)
    assert scan.notes == ((f"header states {name}: its affine is converted to millimeters",) if name else ())


def test_forms_that_disagree_are_said(tmp_path):
    image = nib.Nifti1Image(voxels(), AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] = 50
    image.set_qform(moved, code=1)
    image.set_sform(AFFINE, code=1)
    nib.save(image, tmp_path / "a.nii.gz")
    scan = read_scan(tmp_path / "a.nii.gz")
    assert np.array_equal(scan.affine, AFFINE)
    assert "sform and qform in the header must agree, got places up to 50 mm apart: the sform is taken" in scan.notes[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": [3, 32000, 32000, 32000, 1, 1, 1, 1]}, r"truncated \(its header promises \d+ bytes of voxels"),
        ({"dim": [3, 6, -5, 4, 1, 1, 1, 1]}, r"axes"),
        ({"dim": [7, 6, 5, 4, 1, 1, 1, 1], "datatype": 32}, r"NIfTI|real numbers"),
        ({"vox_offset": 1e9}, r"."),
        ({"scl_slope": 1, "scl_inter": np.inf}, r"header must state a finite scale of its values"),
        ({"srow_x": [np.nan, 0, 0, 0]}, r"header must state a valid affine"),
        ({"srow_x": [np.inf, 0, 0, 0]}, r"header must state a valid affine"),
        ({"srow_x": [0, 0, 0, 0]}, r"header must state a valid affine"),
        ({"datatype": 9999}, r"NIfTI as its name says"),
    ],
)  # fmt: skip
def test_broken_headers(tmp_path, fields, message):
    path = nifti(tmp_path / "a.nii", sform_code=1)
    header = nib.Nifti1Header(path.read_bytes()[:348], check=False)
    for key, value in fields.items():
        header[key] = value
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    with pytest.raises(DataError, match=message) as caught:
        read_scan(path)
    assert "\n" not in str(caught.value)


def test_vectors_of_nifti_are_channels(tmp_path):
    array = voxels((6, 5, 4, 1, 3))
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "a.nii.gz")
    scan = read_scan(tmp_path / "a.nii.gz")
    assert scan.spatial_shape == SHAPE
    assert np.array_equal(scan.channel_first, np.moveaxis(array[:, :, :, 0], -1, 0))


def test_a_pair_in_capital_letters(tmp_path):
    nib.save(nib.Nifti1Pair(voxels(), AFFINE), tmp_path / "a.hdr")
    (tmp_path / "a.hdr").rename(tmp_path / "a.HDR")
    (tmp_path / "a.img").rename(tmp_path / "a.IMG")
    for name in ("a.HDR", "a.IMG"):
        assert np.array_equal(read_scan(tmp_path / name).voxels, voxels())
    (tmp_path / "a.IMG").unlink()
    with pytest.raises(DataError, match=r"file must have its voxels beside it, got no a\.img: copy both files"):
        read_scan(tmp_path / "a.HDR")


def test_a_name_without_a_stem_is_still_packed(tmp_path):
    nib.save(nib.Nifti1Image(voxels(), AFFINE), tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").rename(tmp_path / ".nii.gz")
    assert suffix_of(".nii.gz") == ".nii.gz"
    assert np.array_equal(read_scan(tmp_path / ".nii.gz").voxels, voxels())


def test_scaled_labels_are_integers_again_and_it_is_said(tmp_path):
    label = (voxels() % 3).astype(np.float64)
    image = nib.Nifti1Image(label, AFFINE)
    image.set_data_dtype(np.int16)  # nibabel chooses a slope
    nib.save(image, tmp_path / "a.nii.gz")
    read, _ = read_label(tmp_path / "a.nii.gz")
    assert np.array_equal(read[0], label)


@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_turned_as_viewers_show_them(tmp_path, turn):
    from PIL import ImageOps

    picture = Image.fromarray(voxels((5, 7), "uint8"))
    exif = Image.Exif()
    exif[0x0112] = turn
    picture.save(tmp_path / "a.png", exif=exif)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    scan = read_scan(tmp_path / "a.png")
    assert np.array_equal(scan.voxels, shown.T)
    assert bool(scan.notes) == (turn != 1)


def test_a_palette_is_colors_in_an_image_and_classes_in_a_label(tmp_path):
    classes = (voxels((5, 7)) % 3).astype(np.uint8)
    picture = Image.fromarray(classes, mode="P")
    picture.putpalette([0, 0, 0, 200, 200, 200, 90, 90, 90])
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read_label(tmp_path / "a.png")[0][0], classes.T)
    assert sorted(np.unique(read_scan(tmp_path / "a.png").voxels)) == [0, 90, 200]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_classes_in_few_bits(tmp_path, bits):
    classes = voxels((5, 8), "uint8") % 2**bits
    if bits == 1:
        Image.fromarray(classes.astype(bool)).save(tmp_path / "a.png")
    else:
        (tmp_path / "a.png").write_bytes(png(classes, bits))
    assert np.array_equal(read_label(tmp_path / "a.png")[0][0], classes.T)


def png(classes, bits):
    """A gray picture in fewer than 8 bits, which Pillow reads but does not write."""
    import zlib

    rows = b"".join(
        b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:].ravel()).tobytes() for row in classes
    )
    out = io.BytesIO(b"")
    out.write(b"\x89PNG\r\n\x1a\n")
    height, width = classes.shape
    for kind, content in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        out.write(struct.pack(">I", len(content)) + kind + content)
        out.write(struct.pack(">I", zlib.crc32(kind + content)))
    return out.getvalue()


def test_values_are_counted_without_reading_them(tmp_path):
    nib.save(nib.Nifti1Image(voxels(), AFFINE), tmp_path / "a.nii.gz")
    np.save(tmp_path / "a.npy", voxels())
    assert count_values(tmp_path / "a.nii.gz") == count_values(tmp_path / "a.npy") == 120
    assert count_values(tmp_path / "none.nii.gz") == 0


def test_promises():
    assert check_promise((4, 4, 4), 2, stored=128) == 128
    with pytest.raises(DataError, match="axes of positive length"):
        check_promise((4, -4), 1)
    with pytest.raises(DataError, match="compressed are there"):
        check_promise((10**6, 10**3), 1, stored=1000, packed=True)
    with pytest.raises(DataError, match=r"image must fit into memory, but its header promises .* is the header right"):
        check_promise((10**6, 10**6, 10**3), 4)
