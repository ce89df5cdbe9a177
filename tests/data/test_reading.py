"""One reader: what the check accepts is what training, prediction and evaluation get, voxel by voxel; and no more."""

from __future__ import annotations

import gzip
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image

from monai_ssl.curation.verify import verify
from monai_ssl.data import CaseDataset, DataError, load_preset, preprocessing, validation_preprocessing
from monai_ssl.data.datalist import Datalist
from monai_ssl.data.monai_io import LoadImageScand
from monai_ssl.data.pipelines import postprocessing, training_preprocessing
from monai_ssl.data.reading import handed_over, load_original, read_label, read_scan, read_volume
from monai_ssl.runs.scoring import evaluate_predictions

SHAPE = (17, 16, 18)
AFFINE = np.array([[0.0, -1.5, 0, 3], [1.25, 0, 0, -4], [0, 0, 2.0, 5], [0, 0, 0, 1]])
NIFTI_TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


def voxels(dtype: str, shape=SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 100, shape).astype(dtype)


def save_nifti(path: Path, array: np.ndarray, order: str = "<", affine=AFFINE, kind=nib.Nifti1Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # channels are the last axis of the file
    image = kind(array, affine, kind.header_class(endianness=order), dtype=array.dtype.newbyteorder(order))
    nib.save(image, path)
    assert nib.load(path).get_data_dtype().newbyteorder(order) == array.dtype.newbyteorder(order)
    return path


def save_itk(path: Path, array: np.ndarray, vector: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = (2, 1, 0, 3) if vector else range(array.ndim)[::-1]
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(axes)), isVector=vector)
    lps = np.diag([-1, -1, 1, 1]) @ AFFINE
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing)
    image.SetDirection((lps[:3, :3] / spacing).flatten())
    image.SetOrigin(lps[:3, 3])
    SimpleITK.WriteImage(image, str(path))
    return path


def save_analyze(path: Path, array: np.ndarray, order: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = nib.spm99analyze.Spm99AnalyzeHeader(endianness=order)
    header.set_data_dtype(array.dtype.newbyteorder(order))
    nib.save(nib.spm99analyze.Spm99AnalyzeImage(array, np.diag([-1.0, 1.25, 2, 1]), header), path)
    return path


def zoo() -> dict[str, object]:
    """name -> (how to write a file of it, channels). Every suffix, byte order, number type and number of channels."""
    kinds: dict[str, object] = {}
    for order in "<>":
        for dtype in NIFTI_TYPES:
            kinds[f"nii.gz {order}{dtype}"] = lambda folder, name, array, o=order: save_nifti(
                folder / f"{name}.nii.gz", array, o
            )
        for suffix, kind in ((".nii", nib.Nifti1Image), (".nii", nib.Nifti2Image), (".nii.gz", nib.Nifti2Image)):
            kinds[f"{suffix[1:]} {kind.__name__} {order}float32"] = (
                lambda folder, name, array, o=order, s=suffix, k=kind: save_nifti(
                    folder / f"{name}{s}", array, o, kind=k
                )
            )
        kinds[f"hdr pair {order}int16"] = lambda folder, name, array, o=order: save_nifti(
            folder / f"{name}.hdr", array, o, kind=nib.Nifti1Pair
        )
        kinds[f"hdr analyze {order}int16"] = lambda folder, name, array, o=order: save_analyze(
            folder / f"{name}.hdr", array, o
        )
    for suffix in (".mha", ".mhd", ".nrrd", ".nhdr"):
        for dtype in ("uint8", "int16", "float32"):
            kinds[f"{suffix[1:]} {dtype}"] = lambda folder, name, array, s=suffix: save_itk(
                folder / f"{name}{s}", array
            )
    return kinds


ZOO = zoo()


def refused_by(chain, entry) -> str:
    """The words with which a chain of transforms refuses a case; MONAI wraps what its transforms raise."""
    with pytest.raises(RuntimeError) as caught:
        chain(dict(entry))
    assert isinstance(caught.value.__cause__, DataError)
    return str(caught.value.__cause__)


def preset(channels: int = 1):
    return load_preset(
        {
            "name": "zoo",
            "channels": [f"c{i}" for i in range(channels)],
            "labels": {0: "background", 1: "organ"},
            "patch_size": [16, 16, 16],
            "orientation": None,
            "intensity": {"policy": "as_stored"},
            "augmentation": {"policy": "none"},
        }
    )


def everywhere(entry, kind, folder) -> tuple[np.ndarray, np.ndarray]:
    """The case by every door; each must give the same voxels and the same affine. Returns image and label."""
    listed = Datalist(training=[entry], validation=[entry], testing=[entry])
    problems = verify(listed, kind, sections=["training"], progress=False)
    assert [str(p) for p in problems if p.severity == "error"] == []
    files = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    image = np.concatenate([read_volume(file)[0] for file in files]).astype(np.float32)
    label, affine = read_label(entry["label"])

    cached = CaseDataset([entry], training_preprocessing(kind), num_workers=1)[0]
    np.testing.assert_array_equal(cached["image"].numpy(), image)
    np.testing.assert_array_equal(cached["label"].numpy(), label)
    predicted = preprocessing(kind)({"image": entry["image"]})
    np.testing.assert_array_equal(predicted["image"].numpy(), image)
    np.testing.assert_array_equal(predicted["image"].affine, read_volume(files[0])[1])
    validated = validation_preprocessing(kind)(dict(entry))
    np.testing.assert_array_equal(validated["image"].numpy(), image)
    np.testing.assert_array_equal(validated["label"].numpy(), label)
    np.testing.assert_array_equal(validated["label"].affine, affine)
    np.testing.assert_array_equal(load_original(files[0]), image[0])
    return image, label


@pytest.mark.parametrize("name", ZOO)
def test_every_format_by_every_door(tmp_path, name):
    array = voxels(name.split()[-1].lstrip("<>"))
    mask = (array > 60).astype(array.dtype)
    entry = {"image": str(ZOO[name](tmp_path, "scan", array)), "label": str(ZOO[name](tmp_path, "scan_seg", mask))}
    image, label = everywhere(entry, preset(), tmp_path)
    np.testing.assert_array_equal(image[0], array)
    np.testing.assert_array_equal(label[0], mask)
    if "analyze" not in name:
        np.testing.assert_allclose(read_volume(entry["image"])[1], AFFINE, atol=1e-5)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("files", [1, 3])
def test_channels_in_one_file_and_in_three(tmp_path, order, files):
    array = voxels("int16", (*SHAPE, 3))
    label = str(save_nifti(tmp_path / "seg.nii.gz", (array[..., 0] > 60).astype(np.uint8), order))
    if files == 1:
        images = str(save_nifti(tmp_path / "scan.nii.gz", array, order))
    else:
        images = [str(save_nifti(tmp_path / f"scan_{i}.nii", array[..., i], order)) for i in range(3)]
    image, _ = everywhere({"image": images, "label": label}, preset(3), tmp_path)
    np.testing.assert_array_equal(image, np.moveaxis(array, -1, 0))


def test_vectors_of_itk_are_channels(tmp_path):
    array = voxels("float32", (*SHAPE, 2))
    entry = {"image": str(save_itk(tmp_path / "scan.nrrd", array, vector=True)),
             "label": str(save_itk(tmp_path / "seg.mha", (array[..., 0] > 60).astype(np.uint8)))}  # fmt: skip
    image, _ = everywhere(entry, preset(2), tmp_path)
    np.testing.assert_array_equal(image, np.moveaxis(array, -1, 0))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_columns_by_rows(tmp_path, suffix, channels):
    array = np.repeat(np.arange(12, dtype=np.uint8)[:, None], 20, 1) * 20  # 12 rows, 20 columns
    picture = array if channels == 1 else np.stack([array, array, array], -1)
    Image.fromarray(picture).save(tmp_path / f"a{suffix}")
    volume, affine = read_volume(tmp_path / f"a{suffix}")
    assert affine is None
    assert volume.shape == (channels, 20, 12)
    np.testing.assert_allclose(volume[0].astype(int), array.T, atol=6)  # JPEG is lossy


def test_a_scale_factor_of_a_label_file_is_no_interpolation(tmp_path):
    mask = (voxels("uint8") > 60).astype(np.int16) * 7
    image = nib.Nifti1Image(mask, AFFINE)
    image.header.set_slope_inter(1 / 7, 0)
    nib.save(image, tmp_path / "seg.nii.gz")
    stored = np.unique(nib.load(tmp_path / "seg.nii.gz").get_fdata())
    assert stored[1] != 1
    assert abs(stored[1] - 1) < 1e-6
    entry = {"image": str(save_nifti(tmp_path / "a.nii.gz", voxels("int16"))), "label": str(tmp_path / "seg.nii.gz")}
    _, label = everywhere(entry, preset(), tmp_path)
    np.testing.assert_array_equal(label[0], mask // 7)
    # a value between classes still is
    save_nifti(tmp_path / "half.nii.gz", (mask / 14).astype(np.float32))
    text = refused_by(training_preprocessing(preset()), {**entry, "label": str(tmp_path / "half.nii.gz")})
    assert "half.nii.gz: label must hold integers, got 0.5" in text


def test_a_qform_that_alone_fits_the_voxel_sizes_counts_as_in_monai(tmp_path):
    from monai.transforms import LoadImage

    image = nib.Nifti1Image(voxels("int16"), AFFINE)
    image.set_qform(AFFINE, 1)
    image.header["pixdim"][1:4] = np.linalg.norm(AFFINE[:3, :3], axis=0)
    image.header["srow_x"] *= 3
    nib.save(image, tmp_path / "a.nii")
    theirs = LoadImage(image_only=True)(str(tmp_path / "a.nii"))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii")[1], theirs.affine)
    np.testing.assert_allclose(theirs.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 2), (17, 16), (17, 16, 1)])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_tensors_are_those_of_monai(tmp_path, shape, dtype):
    """Same values, number type, strides and geometry: the bits of a training do not depend on who reads."""
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

    path = str(save_nifti(tmp_path / "a.nii.gz", voxels(dtype, shape)))
    many = [str(save_nifti(tmp_path / f"{i}.nii.gz", voxels(dtype, SHAPE, i))) for i in range(3)]
    for image in (path, many):
        theirs = Compose([LoadImaged("image", image_only=True, dtype=None), EnsureChannelFirstd("image")])
        ours = Compose([LoadImageScand("image"), EnsureChannelFirstd("image")])
        a, b = theirs({"image": image})["image"], ours({"image": image})["image"]
        np.testing.assert_array_equal(a.numpy(), b.numpy())
        assert (a.dtype, a.stride(), a.shape) == (b.dtype, b.stride(), b.shape)
        np.testing.assert_array_equal(a.affine, b.affine)
        for key in ("filename_or_obj", "space", "spatial_shape", "original_affine"):
            np.testing.assert_array_equal(a.meta[key], b.meta[key])


def test_threads_share_the_reader(tmp_path):
    files = [[str(save_nifti(tmp_path / f"{c}_{i}.nii.gz", voxels("int16", SHAPE, 10 * c + i))) for i in range(4)]
             for c in range(8)]  # fmt: skip
    load = LoadImageScand("image")
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda names: load({"image": names})["image"].numpy(), files * 4))
    for index, array in enumerate(loaded):
        np.testing.assert_array_equal(array, np.stack([voxels("int16", SHAPE, 10 * (index % 8) + i) for i in range(4)]))


@pytest.mark.parametrize("shape", [(20, 18), (20, 18, 1), (20, 18, 3)])
def test_results_have_the_axes_of_the_file(tmp_path, shape):
    path = save_nifti(tmp_path / "a.nii.gz", voxels("float32", shape))
    flat = preset().model_copy(update={"spatial_dims": 2, "patch_size": (16, 16)})
    chain = preprocessing(flat)
    item = chain({"image": str(path)})
    prediction = torch.stack([1 - item["image"][0], item["image"][0]])
    postprocessing(flat, chain, str(tmp_path / "out"))({"image": item["image"], "pred": prediction})
    written = nib.load(tmp_path / "out" / "a_seg.nii.gz")
    assert written.shape == shape
    np.testing.assert_array_equal(np.asarray(written.dataobj), voxels("float32", shape) > 0.5)


# ------------------------------------------------------------------------------------------------- what is refused


def spoiled(kind: str, folder: Path) -> tuple[Path, str]:
    """A file, and the words that every door must say about it."""
    path = folder / "scan.nii.gz"
    if kind in ("complex64", "rgb"):
        array = voxels("int16").astype(np.complex64) if kind == "complex64" else voxels("uint8")
        if kind == "rgb":
            array = np.stack([array] * 3, -1).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
        nib.save(nib.Nifti1Image(array, AFFINE), path)
        return path, "image must hold real numbers"
    if kind == "checksum":
        save_nifti(path, voxels("int16"))
        content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
        content[-100] ^= 0xFF
        path.write_bytes(bytes(content))
        return path, "truncated or corrupt"
    if kind == "affine":
        image = nib.Nifti1Image(voxels("int16"), AFFINE)
        image.header["srow_x"][0] = np.inf
        with gzip.open(path, "wb") as stream:
            stream.write(image.header.binaryblock + b"\0" * 4 + image.dataobj.tobytes(order="F"))
        return path, "must state a valid affine"
    if kind == "truncated nii":
        path = save_nifti(folder / "scan.nii", voxels("int16"))
        path.write_bytes(path.read_bytes()[:3000])
        return path, "file must be complete"
    if kind == "truncated nrrd":
        path = save_itk(folder / "scan.nrrd", voxels("int16"))
        path.write_bytes(path.read_bytes()[:2000])
        return path, "file must be complete"
    if kind == "no data beside the header":
        path = save_itk(folder / "scan.mhd", voxels("int16"))
        for other in folder.glob("*raw"):
            other.unlink()
        return path, "file must"
    if kind == "pages":
        path = folder / "scan.tif"
        pages = [Image.fromarray(page) for page in voxels("uint8")]
        pages[0].save(path, save_all=True, append_images=pages[1:])
        return path, "picture must have one page, got 17"
    if kind == "pickle":
        path = folder / "scan.npy"
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        return path, "allow_pickle=False"
    path.write_bytes(b"<html>not found</html>")
    return path, "file must be gzip-compressed"


@pytest.mark.parametrize(
    "kind",
    [
        "complex64",
        "rgb",
        "checksum",
        "affine",
        "truncated nii",
        "truncated nrrd",
        "no data beside the header",
        "pages",
        "pickle",
        "web page",
    ],
)
def test_what_the_check_refuses_no_door_lets_in(tmp_path, kind):
    path, words = spoiled(kind, tmp_path)
    entry = {"image": str(path)}
    errors = [p for p in verify(Datalist(unlabeled=[entry]), preset(), sections=["unlabeled"], progress=False)
              if p.severity == "error"]  # fmt: skip
    assert len(errors) == 1
    assert words in errors[0].message
    for chain in (training_preprocessing(preset(), label=False), preprocessing(preset())):
        text = refused_by(chain, entry)
        assert words in text
        assert path.name in text


def test_a_label_on_another_grid_is_refused_by_every_door(tmp_path):
    array = voxels("int16", (16, 16, 16))
    image = str(save_nifti(tmp_path / "a.nii.gz", array))
    label = str(save_nifti(tmp_path / "a_seg.nii.gz", (array > 60).astype(np.uint8), affine=np.eye(4)))
    entry = {"image": image, "label": label}
    errors = [p for p in verify(Datalist(training=[entry]), preset(), sections=["training"], progress=False)
              if p.severity == "error"]  # fmt: skip
    assert ["label must be on its image's grid" in error.message for error in errors] == [True]
    for chain in (training_preprocessing(preset()), validation_preprocessing(preset())):
        assert "a_seg.nii.gz: label must be on its image's grid" in refused_by(chain, entry)


def test_evaluation_of_files_reads_what_training_reads(tmp_path):
    array = voxels("int16")
    mask = (array > 60).astype(np.uint8)
    (tmp_path / "datalist.json").write_text(
        '{"training": [], "testing": [{"image": "a.nrrd", "label": "seg.nrrd"}], "unlabeled": []}'
    )
    save_itk(tmp_path / "a.nrrd", array)
    save_itk(tmp_path / "seg.nrrd", mask)
    save_nifti(tmp_path / "predictions" / "a_seg.nii.gz", mask, ">")
    results = evaluate_predictions(tmp_path / "predictions", "phantom", tmp_path, None, "testing")
    assert ",1.0," in (results / "per_case.csv").read_text()


# ------------------------------------------------------------------------------------------- read once per command


def test_what_the_check_read_is_taken_over_once(tmp_path, monkeypatch):
    array = voxels("int16")
    entries = []
    for i in range(3):
        image = save_nifti(tmp_path / f"{i}.nii.gz", voxels("int16", seed=i))
        label = save_nifti(tmp_path / f"{i}_seg.nii.gz", (array > 60).astype(np.uint8))
        entries.append({"image": str(image), "label": str(label)})
    kind = preset()
    without = [CaseDataset(entries, training_preprocessing(kind))[i] for i in range(3)]

    opened: list[str] = []
    plain = gzip.open
    monkeypatch.setattr(gzip, "open", lambda file, *a: (opened.append(Path(file).name), plain(file, *a))[1])
    with handed_over() as memory:
        verify(Datalist(training=entries), kind, sections=["training"], progress=False, memory=memory)
        assert (len(opened), len(memory)) == (6, 6)
        os.utime(entries[2]["image"], (1, 1))  # a file that was touched since is read again
        cached = CaseDataset(entries, training_preprocessing(kind))
        for index, expected in enumerate(without):
            np.testing.assert_array_equal(cached[index]["image"], expected["image"])
            np.testing.assert_array_equal(cached[index]["label"], expected["label"])
        assert opened[6:] == ["2.nii.gz"]
        assert len(memory) == 0
    read_scan(entries[0]["image"])
    assert opened[7:] == ["0.nii.gz"]


def test_the_memory_of_the_check_is_bounded(tmp_path):
    entries = [{"image": str(save_nifti(tmp_path / f"{i}.nii.gz", voxels("int16", seed=i)))} for i in range(4)]
    size = int(np.prod(SHAPE)) * 2
    with handed_over(2 * size + 10) as memory:
        verify(Datalist(unlabeled=entries), preset(), ["unlabeled"], progress=False, memory=memory)
        assert len(memory) == 2
        assert memory.budget == 10


def test_building_the_loader_says_nothing_of_other_readers(recwarn, caplog):
    LoadImageScand("image")
    assert not list(recwarn)
    assert not caplog.records
