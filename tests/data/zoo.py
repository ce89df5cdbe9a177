"""One small file of every kind: sound ones with the voxels that they hold, and ones that must be refused."""

from __future__ import annotations

import gzip
import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
from PIL import Image, PngImagePlugin

SHAPE = (18, 17, 16)
FLAT = (20, 18)
OBLIQUE = np.array([[0.0, -1.5, 0, 3], [1.25, 0, 0, -4], [0, 0, 2.0, 5], [0, 0, 0, 1]])
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Animal:
    """How to write one kind of file.

    Attributes:
        write: gets a folder, writes a file into it and returns its path.
        voxels: classes 0 to 3 as the file holds them, ``(X, Y[, Z])`` (of several channels the first); None: no command
            may read it.
        affine: of the file in RAS, None where it does not matter.
        channels: of the image.
        approximate: what is lossy is read within so many gray values, and is no label.
    """

    write: Callable[[Path], Path]
    voxels: np.ndarray | None
    affine: np.ndarray | None = None
    channels: int = 1
    approximate: float = 0

    @property
    def dims(self) -> int:
        return 3 if self.voxels is None else self.voxels.ndim


def classes(shape=SHAPE) -> np.ndarray:
    """Classes 0 to 3, no two slices, rows or columns of them equal or symmetric."""
    return np.random.RandomState(7).randint(0, 4, shape).astype(np.uint8)


ZOO: dict[str, Animal] = {}


def sound(name: str, voxels: np.ndarray, affine: np.ndarray | None = None, channels: int = 1, approximate: float = 0):
    def register(write):
        assert name not in ZOO, name
        ZOO[name] = Animal(write, voxels, affine, channels, approximate)
        return write

    return register


def sick(name: str):
    def register(write):
        assert name not in ZOO, name
        ZOO[name] = Animal(write, None)
        return write

    return register


# ------------------------------------------------------------------------------------------------------------- NIfTI


def nifti(path, array, affine=OBLIQUE, order="<", kind=nib.Nifti1Image, slope=None, inter=0.0, fields=None) -> Path:
    """A NIfTI file; ``fields`` are put into its header afterwards, past all checks."""
    array = np.asarray(array)
    image = kind(array, affine, kind.header_class(endianness=order), dtype=array.dtype.newbyteorder(order))
    image.set_qform(affine, 1)
    if slope is not None:
        image.header.set_slope_inter(slope, inter)
    plain = path.with_name("plain.nii") if kind is not nib.Nifti1Pair else path
    nib.save(image, plain)
    if kind is nib.Nifti1Pair:
        return path
    raw = bytearray(plain.read_bytes())
    plain.unlink()
    header = image.header_class(bytes(raw[: image.header.sizeof_hdr]), endianness=order, check=False)
    for key, value in (fields or {}).items():
        header[key] = value
    raw[: image.header.sizeof_hdr] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(raw), 1) if path.name.lower().endswith(".gz") else bytes(raw))
    return path


def _nifti(name, file="a.nii.gz", array=None, expected=None, affine=OBLIQUE, stated=None, channels=1, **settings):
    array = classes() if array is None else array
    expected = array.real.astype(np.uint8) if expected is None else expected
    sound(name, expected, affine if stated is None else stated, channels)(
        lambda folder: nifti(folder / file, array, affine, **settings)
    )


for _order, _endian in (("<", "little"), (">", "big")):
    for _type in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"):
        _nifti(f"NIfTI-1 {_type} {_endian}", array=classes().astype(_type), order=_order)
    _nifti(f"NIfTI-2 {_endian}", array=classes().astype("int16"), order=_order, kind=nib.Nifti2Image)
    _nifti(f"NIfTI-1 pair {_endian}", "a.hdr", classes().astype("int16"), order=_order, kind=nib.Nifti1Pair)
_nifti("NIfTI-2 without compression", "a.nii", kind=nib.Nifti2Image)
_nifti("NIfTI capital letters", "A.NII.GZ")
_nifti("NIfTI without compression in capital letters", "A.NII")
_nifti("NIfTI dots and spaces in the name", "a b.c.nii.gz")
_nifti("NIfTI scale", array=classes().astype("int16") * 7 - 3, expected=classes(), slope=1 / 7, inter=3 / 7)
_nifti("NIfTI negative scale", array=3 - classes().astype("int16"), expected=classes(), slope=-1, inter=3)
_nifti("NIfTI scale 0", fields={"scl_slope": 0, "scl_inter": 5})
_nifti("NIfTI scale NaN", fields={"scl_slope": np.nan, "scl_inter": np.nan})
_nifti("NIfTI channels", array=np.stack([classes(), classes()[::-1]], -1), expected=classes(), channels=2)
_nifti("NIfTI time axis of one", array=classes()[..., None], expected=classes())
_nifti("NIfTI five axes of one", array=classes()[..., None, None], expected=classes())
_nifti("NIfTI vectors", array=np.stack([classes(), classes()[::-1]], -1)[:, :, :, None], expected=classes(), channels=2)
_nifti("NIfTI slice", array=classes(FLAT), expected=classes(FLAT))
_nifti("NIfTI slice as a volume", array=classes(FLAT)[..., None], expected=classes(FLAT)[..., None])
_nifti("NIfTI spacing", affine=np.diag([0.4, 0.8, 3.3, 1]))
_nifti("NIfTI tiny spacing", affine=np.diag([0.01, 0.01, 0.01, 1]))
_nifti("NIfTI negative axes", affine=np.diag([-1.0, -2.0, -3.0, 1]))
_nifti(
    "NIfTI meters", affine=np.diag([0.001, 0.002, 0.003, 1]), stated=np.diag([1.0, 2, 3, 1]), fields={"xyzt_units": 1}
)
_nifti("NIfTI negative pixdim", affine=np.diag([1.0, 2, 3, 1]), fields={"pixdim": [1, -1, 2, 3, 0, 0, 0, 0]})
_nifti("NIfTI only qform", fields={"sform_code": 0})
_nifti("NIfTI only sform", fields={"qform_code": 0})
_nifti(
    "NIfTI texts", fields={"descrip": b"SECRET", "aux_file": b"SECRET", "db_name": b"SECRET", "intent_name": b"SECRET"}
)
_nifti("NIfTI without any affine", affine=np.diag([1.5, 1.5, 2.0, 1]), fields={"sform_code": 0, "qform_code": 0},
       stated=np.array([[-1.5, 0, 0, 12.75], [0, 1.5, 0, -12], [0, 0, 2, -15], [0, 0, 0, 1]]))  # fmt: skip


@sound("NIfTI forms disagree", classes(), OBLIQUE)
def _(folder):
    image = nib.Nifti1Image(classes(), OBLIQUE)
    image.set_qform(OBLIQUE + np.diag([0, 0, 0, 0.0]) + np.array([[0, 0, 0, 40]] + [[0] * 4] * 3), 1)
    image.set_sform(OBLIQUE, 1)
    nib.save(image, folder / "a.nii.gz")
    return folder / "a.nii.gz"


SHEARED = OBLIQUE + np.array([[0.2, 0, 0, 0], [0, 0, 0.3, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


_nifti("NIfTI sform of no use", fields={"srow_x": [np.inf, np.nan, 0, 0]})


@sound("NIfTI sheared", classes(), SHEARED)
def _(folder):
    image = nib.Nifti1Image(classes(), None)
    image.set_sform(SHEARED, 1)
    nib.save(image, folder / "a.nii.gz")
    return folder / "a.nii.gz"


@sound("NIfTI with an extension", classes(), OBLIQUE)
def _(folder):
    image = nib.Nifti1Image(classes(), OBLIQUE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"SECRET" * 40))
    nib.save(image, folder / "a.nii.gz")
    return folder / "a.nii.gz"


@sound("NIfTI with a gap before the voxels", classes(), OBLIQUE)
def _(folder):
    path = nifti(folder / "a.nii", classes(), fields={"vox_offset": 416})
    raw = path.read_bytes()
    path.write_bytes(raw[:352] + b"\xff" * 64 + raw[352:])
    return path


@sound("NIfTI of several gzip members", classes(), OBLIQUE)
def _(folder):
    raw = nifti(folder / "a.nii", classes()).read_bytes()
    (folder / "a.nii").unlink()
    (folder / "a.nii.gz").write_bytes(gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]))
    return folder / "a.nii.gz"


@sound("NIfTI behind a link", classes(), OBLIQUE)
def _(folder):
    (folder / "store").mkdir()
    nifti(folder / "store" / "0001.nii.gz", classes())
    (folder / "a.nii.gz").symlink_to(folder / "store" / "0001.nii.gz")
    return folder / "a.nii.gz"


@sound("Analyze", classes())
def _(folder):
    header = nib.AnalyzeHeader()
    header.set_data_dtype(np.int16)
    nib.save(nib.AnalyzeImage(classes().astype(np.int16), None, header), folder / "a.img")
    return folder / "a.hdr"


@sound("Analyze of SPM", classes())
def _(folder):
    header = nib.spm99analyze.Spm99AnalyzeHeader(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    nib.save(nib.spm99analyze.Spm99AnalyzeImage(classes().astype(np.int16), np.diag([-1.0, 1, 2, 1]), header),
             folder / "a.img")  # fmt: skip
    return folder / "a.hdr"


# --------------------------------------------------------------------------------------------------- MetaImage and NRRD


def itk(path: Path, array: np.ndarray, compress: bool = False, vector: bool = False, texts: bool = False) -> Path:
    dims = array.ndim - vector
    axes = (*range(dims)[::-1], *([dims] if vector else []))
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(axes)), isVector=vector)
    lps = (LPS @ OBLIQUE)[:dims]
    spacing = np.linalg.norm(lps[:, :dims], axis=0)
    image.SetSpacing(spacing)
    image.SetDirection((lps[:, :dims] / spacing).flatten())
    image.SetOrigin(lps[:, 3])
    if texts:
        image.SetMetaData("PatientName", "SECRET")
    SimpleITK.WriteImage(image, str(path), compress)
    return path


for _suffix in (".mha", ".mhd", ".nrrd", ".nhdr"):
    for _packed in (False, True):
        sound(f"{_suffix} {'packed' if _packed else 'plain'}", classes(), OBLIQUE)(
            lambda folder, s=_suffix, p=_packed: itk(folder / f"a{s}", classes().astype("int16"), p)
        )
    sound(f"{_suffix} vectors", classes(), OBLIQUE, channels=2)(
        lambda folder, s=_suffix: itk(folder / f"a{s}", np.stack([classes(), classes()[::-1]], -1), vector=True)
    )
    for _type in ("uint8", "uint32", "int64", "float32", "float64"):
        sound(f"{_suffix} {_type}", classes(), OBLIQUE)(
            lambda folder, s=_suffix, t=_type: itk(folder / f"a{s}", classes().astype(t))
        )
    sound(f"{_suffix} texts", classes(), OBLIQUE)(
        lambda folder, s=_suffix: itk(folder / f"a{s}", classes(), texts=True)
    )
sound(".mha slice", classes(FLAT))(lambda folder: itk(folder / "a.mha", classes(FLAT)))
sound(".MHA capital letters", classes(), OBLIQUE)(
    lambda folder: itk(folder / "a.mha", classes()).rename(folder / "A.MHA")
)


@sound(".mhd big endian", classes(), OBLIQUE)
def _(folder):
    path = itk(folder / "a.mhd", classes().astype("int16"))
    path.write_text(path.read_text().replace("BinaryDataByteOrderMSB = False", "BinaryDataByteOrderMSB = True"))
    raw = folder / "a.raw"
    raw.write_bytes(np.frombuffer(raw.read_bytes(), "<i2").astype(">i2").tobytes())
    return path


# ------------------------------------------------------------------------------------------------------------ pictures

ROWS = classes(FLAT).T  # rows, columns: what a picture holds of (x, y)


def _picture(name, file, picture, voxels=None, channels=1, approximate=0.0, **options):
    def write(folder):
        picture.save(folder / file, **options)
        return folder / file

    sound(name, classes(FLAT) if voxels is None else voxels, None, channels, approximate)(write)


_GRAY, _COLOR = Image.fromarray(ROWS), Image.fromarray(np.stack([ROWS, ROWS[::-1], ROWS[:, ::-1]], -1))
_picture("PNG", "a.png", _GRAY)
_picture("PNG 16 bits", "a.png", Image.fromarray(ROWS.astype(np.uint16)))
_picture("PNG 1 bit", "a.png", Image.fromarray(ROWS > 1), (classes(FLAT) > 1).astype(np.uint8))
_picture("PNG colors", "a.png", _COLOR, channels=3)
_picture("PNG gray and alpha", "a.png", Image.fromarray(np.stack([ROWS, 255 - ROWS], -1), "LA"), channels=2)
_picture("PNG colors and alpha", "a.png", Image.fromarray(np.stack([ROWS, ROWS, ROWS, 255 - ROWS], -1)), channels=4)
_picture("PNG capital letters", "A.PNG", _GRAY)
_picture("PNG interlaced or not, with texts", "a.png", _GRAY, pnginfo=PngImagePlugin.PngInfo())
_picture("BMP", "a.bmp", _GRAY)
_picture("JPEG", "a.jpg", Image.fromarray(ROWS * 60), classes(FLAT) * 60, approximate=40, quality=95)
_picture("JPEG colors", "a.jpeg", Image.fromarray(np.stack([ROWS * 60] * 3, -1)), classes(FLAT) * 60, 3, 40, quality=95)
_picture("TIFF", "a.tif", _GRAY)
_picture("TIFF 16 bits", "a.tiff", Image.fromarray(ROWS.astype(np.uint16)))
_picture("TIFF float", "a.tif", Image.fromarray(ROWS.astype(np.float32)))
_picture("TIFF int32", "a.tif", Image.fromarray(ROWS.astype(np.int32)))
_picture("TIFF deflate", "a.tif", _GRAY, compression="tiff_adobe_deflate")
_picture("TIFF LZW", "a.tif", _GRAY, compression="tiff_lzw")
_picture("TIFF colors", "a.tif", _COLOR, channels=3)


@sound("PNG palette", classes(FLAT))
def _(folder):
    picture = Image.fromarray(ROWS, mode="P")
    picture.putpalette([value for i in range(256) for value in (i, i, i)])
    picture.save(folder / "a.png")
    return folder / "a.png"


for _turn in range(2, 9):

    @sound(f"PNG EXIF {_turn}", classes(FLAT))
    def _(folder, turn=_turn):
        undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
                5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
                8: Image.Transpose.ROTATE_270}  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = turn
        _GRAY.transpose(undo[turn]).save(folder / "a.png", exif=exif)
        return folder / "a.png"


# ------------------------------------------------------------------------------------------------------ NumPy and DICOM


@sound("npy", classes())
def _(folder):
    np.save(folder / "a.npy", classes())
    return folder / "a.npy"


@sound("npy Fortran order, big endian", classes())
def _(folder):
    np.save(folder / "a.npy", np.asfortranarray(classes().astype(">i2")))
    return folder / "a.npy"


@sound("npz", classes())
def _(folder):
    np.savez_compressed(folder / "a.npz", voxels=classes())
    return folder / "a.npz"


@sound("npy slice", classes(FLAT))
def _(folder):
    np.save(folder / "a.npy", classes(FLAT))
    return folder / "a.npy"


@sound("npy float16", classes())
def _(folder):
    np.save(folder / "a.npy", classes().astype(np.float16))
    return folder / "a.npy"


@sound("a format that only ITK knows", classes())
def _(folder):
    return itk(folder / "a.vtk", classes())


@sound("NIfTI pair packed", classes(), OBLIQUE)
def _(folder):
    nib.save(nib.Nifti1Pair(classes().astype(np.int16), OBLIQUE), folder / "a.img.gz")
    return folder / "a.img.gz"


@sound("NIfTI and zeros behind the pack", classes(), OBLIQUE)
def _(folder):
    path = nifti(folder / "a.nii.gz", classes())
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    return path


@sound("DICOM folder", classes())
def _(folder):
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    series = folder / "series"
    series.mkdir()
    study, group, frame = generate_uid(), generate_uid(), generate_uid()
    for index in range(SHAPE[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, group, frame
        data.Modality, data.PatientName, data.PatientID = "CT", "SECRET", "SECRET"
        data.InstanceNumber = index + 1
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 2.0 * index], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [1.5, 1.0], 2
        data.Rows, data.Columns = SHAPE[1], SHAPE[0]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PixelData = classes()[:, :, index].T.astype("<u2").tobytes()
        pydicom.dcmwrite(series / f"{index}.dcm", data, enforce_file_format=True)
    return series


# ------------------------------------------------------------------------------------------------ what nobody may read


def _refused(name, file="a.nii.gz", array=None, **settings):
    sick(name)(lambda folder: nifti(folder / file, classes() if array is None else array, **settings))


_refused("complex", array=classes().astype(np.complex64))
_refused("colors of NIfTI", array=np.stack([classes()] * 3, -1).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0])
_refused("affine infinite", fields={"qform_code": 0, "srow_x": [np.inf, 0, 0, 0]})
_refused("affine NaN", fields={"qform_code": 0, "srow_y": [0, np.nan, 0, 0]})
_refused("affine singular", fields={"qform_code": 0, "srow_z": [0, 0, 0, 0]})
_refused("affine dependent", fields={"qform_code": 0, "srow_x": [1, 0, 0, 0], "srow_y": [1, 0, 0, 0]})
_refused("scale infinite", fields={"scl_slope": np.inf, "scl_inter": 0})
_refused("intercept infinite", fields={"scl_slope": 1, "scl_inter": np.inf})
_refused("negative axis", "a.nii", fields={"dim": [3, 18, -17, 16, 1, 1, 1, 1]})
_refused("axis of zero", "a.nii", fields={"dim": [3, 18, 0, 16, 1, 1, 1, 1]})
_refused("no axes", "a.nii", fields={"dim": [0, 18, 17, 16, 1, 1, 1, 1]})
_refused("eight axes", "a.nii", fields={"dim": [8, 18, 17, 16, 1, 1, 1, 1]})
_refused("more promised than there", "a.nii", fields={"dim": [3, 32000, 32000, 32000, 1, 1, 1, 1]})
_refused("more promised than packed", fields={"dim": [3, 32000, 32000, 32000, 1, 1, 1, 1]})
_refused("unknown number type", "a.nii", fields={"datatype": 9999})
_refused("offset behind the end", "a.nii", fields={"vox_offset": 1e6})
_refused("offset negative", "a.nii", fields={"vox_offset": -400})
_refused("offset NaN", "a.nii", fields={"vox_offset": np.nan})
_refused("NaN voxels", array=np.where(classes() == 2, np.nan, classes()).astype(np.float32))
_refused("infinite voxels", array=np.where(classes() == 2, np.inf, classes()).astype(np.float32))
_refused("constant", array=np.ones(SHAPE, np.uint8))
_refused("five axes", array=np.stack([np.stack([classes()] * 2, -1)] * 2, -1))


def spoiled(name: str, file: str, change: Callable[[bytearray], bytes], write=None):
    def make(folder):
        path = (write or (lambda p: nifti(p, classes())))(folder / file)
        path.write_bytes(bytes(change(bytearray(path.read_bytes()))))
        return path

    sick(name)(make)


def _flip(content: bytearray, at: int) -> bytearray:
    content[at] ^= 0xFF
    return content


spoiled("wrong checksum", "a.nii.gz", lambda raw: _flip(raw, len(raw) - 6))
spoiled("wrong length", "a.nii.gz", lambda raw: _flip(raw, len(raw) - 2))
spoiled("truncated pack", "a.nii.gz", lambda raw: raw[: len(raw) // 2])
spoiled("checksum cut off", "a.nii.gz", lambda raw: raw[:-8])
spoiled("truncated NIfTI", "a.nii", lambda raw: raw[:-1])
spoiled("half a header", "a.nii", lambda raw: raw[:200])
spoiled("empty file", "a.nii.gz", lambda raw: b"")
spoiled("empty pack", "a.nii.gz", lambda raw: gzip.compress(b""))
spoiled("web page", "a.nii.gz", lambda raw: b"<html>not found</html>")
spoiled("named packed but is not", "a.nii.gz", lambda raw: gzip.decompress(raw))
spoiled("packed but not named so", "a.nii", lambda raw: gzip.compress(raw))
spoiled("NIfTI named MetaImage", "a.mha", lambda raw: raw, lambda p: nifti(p, classes()))
spoiled("NIfTI named PNG", "a.png", lambda raw: raw, lambda p: nifti(p, classes()))
spoiled("NRRD named NIfTI", "a.nrrd", lambda raw: raw[:0] + b"\x5c\x01\x00\x00" + raw, lambda p: itk(p, classes()))
spoiled("truncated MetaImage", "a.mha", lambda raw: raw[:-10], lambda p: itk(p, classes()))
spoiled("truncated packed MetaImage", "a.mha", lambda raw: raw[:-10], lambda p: itk(p, classes(), True))
spoiled("damaged packed MetaImage", "a.mha", lambda raw: _flip(raw, len(raw) - 300), lambda p: itk(p, classes(), True))
spoiled("truncated NRRD", "a.nrrd", lambda raw: raw[:-10], lambda p: itk(p, classes()))
spoiled("truncated packed NRRD", "a.nrrd", lambda raw: raw[:-30], lambda p: itk(p, classes(), True))
spoiled("damaged packed NRRD", "a.nrrd", lambda raw: _flip(raw, len(raw) - 300), lambda p: itk(p, classes(), True))
spoiled("truncated PNG", "a.png", lambda raw: raw[: len(raw) // 2], lambda p: (_GRAY.save(p), p)[1])
spoiled("damaged PNG", "a.png", lambda raw: _flip(raw, len(raw) - 30), lambda p: (_GRAY.save(p), p)[1])
spoiled("truncated TIFF", "a.tif", lambda raw: raw[:-200], lambda p: (_GRAY.save(p), p)[1])
spoiled("truncated npy", "a.npy", lambda raw: raw[:-1], lambda p: (np.save(p, classes()), p)[1])


@sick("pair without voxels")
def _(folder):
    path = nifti(folder / "a.hdr", classes().astype("int16"), kind=nib.Nifti1Pair)
    (folder / "a.img").unlink()
    return path


@sick("header without voxels")
def _(folder):
    path = itk(folder / "a.mhd", classes())
    (folder / "a.raw").unlink()
    return path


@sick("TIFF of several pages")
def _(folder):
    pages = [Image.fromarray(page) for page in classes()]
    pages[0].save(folder / "a.tif", save_all=True, append_images=pages[1:])
    return folder / "a.tif"


@sick("pickle")
def _(folder):
    np.save(folder / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return folder / "a.npy"


@sick("two arrays")
def _(folder):
    np.savez(folder / "a.npz", a=classes(), b=classes())
    return folder / "a.npz"


for _name, _array in (("no axis", np.array(3)), ("one axis", np.arange(5)), ("no voxels", np.zeros((0, 17, 16))),
                      ("texts", np.array(["a", "b"])), ("times", np.array(["2020-01-01"], "M8[D]")),
                      ("records", np.zeros(3, [("Doe_Jane", int)]))):  # fmt: skip

    @sick(f"npy of {_name}")
    def _(folder, array=_array):
        np.save(folder / "a.npy", array)
        return folder / "a.npy"


@sick("pipe")
def _(folder):
    os.mkfifo(folder / "a.nii.gz")
    return folder / "a.nii.gz"


@sick("link to nowhere")
def _(folder):
    (folder / "a.nii.gz").symlink_to(folder / "b.nii.gz")
    return folder / "a.nii.gz"


@sick("TIFF for print")
def _(folder):
    Image.fromarray(np.stack([ROWS] * 4, -1), "CMYK").save(folder / "a.tif")
    return folder / "a.tif"


spoiled("something behind the pack", "a.nii.gz", lambda raw: raw + b"garbage")
spoiled("half a number behind the pack", "a.nii.gz", lambda raw: raw + raw[:12])


@sick("PNG that promises too much")
def _(folder):
    buffer = io.BytesIO()
    _GRAY.save(buffer, "PNG")
    raw = bytearray(buffer.getvalue())
    raw[16:24] = struct.pack(">II", 2**30, 2**30)
    (folder / "a.png").write_bytes(bytes(raw))
    return folder / "a.png"


@sick("empty folder")
def _(folder):
    (folder / "series").mkdir()
    return folder / "series"
