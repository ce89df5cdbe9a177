"""Where prepared cases are kept has no influence on a bit; what is on disk is whole, fits, and goes away."""

import errno
import itertools
import json
import math
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlipd, Transform

import monai_ssl
from monai_ssl.data import CaseCache, CaseDataset, DataError, TwoStreamLoader, load_preset
from monai_ssl.data import cache as cache_module
from monai_ssl.data.cache import FOLDER
from monai_ssl.data.footprint import case_bytes, footprint, prepared_shape
from monai_ssl.data.pipelines import random_transforms, training_preprocessing, validation_preprocessing
from monai_ssl.data.reading import handed_over, read_scan
from monai_ssl.machine import available_memory


def preset_of(dims=3, flavor="practical", **more):
    augmentation = {"flip_axes": [0], "rotate90_axes": [0, 1]} if flavor == "practical" else {}
    window = {"stride": [8] * dims}
    more = {"spatial_dims": dims, "patch_size": [16] * dims, "window": window, "augmentation": augmentation} | more
    return load_preset("phantom", flavor, **more)


def write(path, array, spacing=1.0, codes="RAS"):
    affine = nib.orientations.inv_ornt_aff(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt(codes), nib.orientations.axcodes2ornt("RAS")),
        (*array.shape, 1)[:3],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine @ np.diag([spacing, spacing, spacing, 1.0])), path)
    return str(path)


def scans(root, channels=1, n=(2, 3, 1), sides=(20, 18, 17), codes="RAS"):
    """Entries of labeled cases, the pool and validation."""
    generator = np.random.default_rng(0)
    lists = []
    for name, count in zip(("labeled", "pool", "validation"), n, strict=True):
        entries = []
        for i in range(count):
            files = [
                write(root / f"{name}{i}_{c}.nii.gz", generator.normal(size=sides).astype(np.float32), codes=codes)
                for c in range(channels)
            ]
            entry = {"image": files if channels > 1 else files[0]}
            if name != "pool":
                label = (generator.random(sides) > 0.5).astype(np.uint8)
                entry["label"] = write(root / f"{name}{i}_label.nii.gz", label, codes=codes)
            entries.append(entry)
        lists.append(entries)
    return lists


def loader(lists, preset, cache, num_workers=0, seed=0):
    labeled, pool, validation = lists
    return TwoStreamLoader(
        CaseDataset(labeled, training_preprocessing(preset), cache=cache),
        CaseDataset(pool, training_preprocessing(preset, label=False), cache=cache),
        random_transforms(preset),
        random_transforms(preset, label=False),
        seed=seed,
        num_workers=num_workers,
        validation=CaseDataset(validation, validation_preprocessing(preset), cache=cache),
    )


def take(stream, n=5, start=0):
    stream.start_at(start)
    return list(itertools.islice(iter(stream), n))


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        for key in a:
            assert a[key]["name"] == b[key]["name"]
            for name in set(a[key]) - {"name"}:
                assert a[key][name].dtype == b[key][name].dtype
                assert torch.equal(a[key][name], b[key][name]), (key, name)


def written(folder):
    return sorted((folder / FOLDER).iterdir()) if (folder / FOLDER).is_dir() else []


# one case is 19,584 bytes, with its label 24,480: some here, some there
SOME = 60_000 / 1e9


@pytest.mark.parametrize(
    ("dims", "flavor", "more", "data"),
    [
        (3, "practical", {}, {}),
        (3, "literature", {}, {"codes": "SAL"}),
        (3, "practical", {"spacing": [1.5, 1.0, 2.0]}, {"sides": (17, 30, 9), "codes": "LPS"}),
        (3, "practical", {"channels": ["a", "b"]}, {"channels": 2}),
        (2, "practical", {}, {}),
        (2, "literature", {"channels": ["a", "b"]}, {"channels": 2}),
        (2, "practical", {}, {"sides": (20, 19)}),
    ],
)
def test_the_same_bits_from_memory_and_from_disk(tmp_path, dims, flavor, more, data):
    lists, preset = scans(tmp_path / "data", **data), preset_of(dims, flavor, **more)
    expected = take(loader(lists, preset, None))
    for gb in (math.inf, SOME, 0):
        folder = tmp_path / f"run{gb}"
        stream = loader(lists, preset, CaseCache(gb, run_folder=folder))
        assert_same(expected, take(stream))
        if gb in (0, math.inf):
            assert bool(written(folder)) == (gb == 0)
        # and what validation gets is what it got
        image = CaseDataset(lists[2], validation_preprocessing(preset))[0]["image"]
        found = stream.validation[0]["image"]
        assert torch.equal(found, image)
        assert [step["class"] for step in found.applied_operations] == [s["class"] for s in image.applied_operations]
    assert sum(name.name.endswith(".json") for name in written(tmp_path / "run0")) == 5  # 2 labeled, 3 in the pool


def test_loader_processes_map_what_the_first_one_wrote(tmp_path):
    lists, preset = scans(tmp_path), preset_of()
    expected = take(loader(lists, preset, None), 6)
    for gb in (SOME, 0):
        assert_same(expected, take(loader(lists, preset, CaseCache(gb, run_folder=tmp_path / "run"), 2), 6))
    stream = loader(lists, preset, CaseCache(0, run_folder=tmp_path / "run"), 1)
    stream.prepare()
    for file in written(tmp_path / "run"):  # somebody clears the folder: slow, and right
        file.unlink()
    assert_same(expected[2:], take(stream, 4, start=2))


class Made(Transform):
    """A chain that nobody can describe: image and label as a function of the case's number; 255 is to be ignored."""

    def __call__(self, item):
        generator = torch.Generator().manual_seed(int(item["image"]))
        label = torch.randint(0, 3, (1, 20, 18), generator=generator, dtype=torch.uint8)
        label[label == 2] = 255
        return {"image": torch.randn(1, 20, 18, generator=generator), "label": label}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_chain_of_ones_own_is_written_for_one_start_only(tmp_path, num_workers):
    def build(gb):
        cache = CaseCache(gb, tmp_path / "lasting", tmp_path / "run")
        cases = CaseDataset([{"image": str(i)} for i in range(3)], Compose([Made()]), cache=cache)
        return TwoStreamLoader(cases, None, random_transforms(preset_of(2)), num_workers=num_workers)

    expected = take(build(math.inf), 3)
    assert (expected[0]["labeled"]["label"] == 255).any()
    for _ in range(2):
        assert_same(expected, take(build(0), 3))
        assert len(written(tmp_path / "run")) == 3 * 3  # image, label and facts; those of the first are gone
    assert not written(tmp_path / "lasting")


class Tracked(Transform):
    """A chain that nobody can describe, and whose result is more than plain tensors."""

    def __init__(self, preset):
        self.chain = Compose(training_preprocessing(preset).transforms[:-2])

    def __call__(self, item):
        return self.chain(item)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_cases_that_cannot_be_written_are_prepared_anew(tmp_path, num_workers):
    preset = preset_of()
    (labeled, *_), folder = scans(tmp_path, codes="PIR"), tmp_path / "run"

    def build(cache, num_workers):
        cases = CaseDataset(labeled, Compose([Tracked(preset)]), cache=cache)
        return TwoStreamLoader(cases, None, random_transforms(preset), num_workers=num_workers)

    assert_same(take(build(None, 0), 3), take(build(CaseCache(0, run_folder=folder), num_workers), 3))
    assert not written(folder)


# ------------------------------------------------------------------------------------------------ what is used again


def count_reads(monkeypatch):
    reads = []
    real = read_scan

    def reading(path, *options):
        reads.append(Path(path).name)
        return real(path, *options)

    monkeypatch.setattr("monai_ssl.data.reading.read_scan", reading)
    return reads


def test_a_resumed_training_uses_what_is_whole_and_fits(tmp_path, monkeypatch):
    lists, folder = scans(tmp_path / "data"), tmp_path / "run"
    reads = count_reads(monkeypatch)

    def prepare(gb=0, preset=None):
        reads.clear()
        stream = loader(lists, preset or preset_of(), CaseCache(gb, run_folder=folder))
        batches = take(stream, 3)
        return sorted(set(reads) - {"validation0_0.nii.gz", "validation0_label.nii.gz"}), batches

    everything, expected = prepare()
    assert len(everything) == 7
    assert prepare()[0] == []
    assert_same(expected, prepare(SOME)[1])  # another budget: the same
    assert_same(expected, prepare()[1])

    # a kill while a file was written, a bit that changed, a file that ends early
    files = [file for file in written(folder) if file.suffix == ".npy" and "image" in file.name]
    (folder / FOLDER / f".1-{files[0].name}").write_bytes(files[0].read_bytes()[:99])
    files[0].with_name(files[0].name.replace("-image.npy", ".json")).unlink()
    content = bytearray(files[1].read_bytes())
    content[-1] ^= 1
    files[1].write_bytes(content)
    files[2].write_bytes(files[2].read_bytes()[:-4])
    again, batches = prepare()
    assert len([name for name in again if "_label" not in name]) == 3
    assert_same(expected, batches)
    assert not [file for file in written(folder) if file.name.startswith(".")]

    # a scan changes and keeps its size and time, as a copying program leaves them
    path = Path(lists[1][0]["image"])
    state = path.stat()
    changed = read_scan(path).voxels.copy()
    changed[0, 0, 0] += 1
    write(tmp_path / "other.nii", changed)
    path.write_bytes(path.read_bytes()[:-8] + b"\0" * 8)  # its checksum is wrong: who reads it says so
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(DataError, match="pool0_0"):
        prepare()
    write(path, changed)
    again, batches = prepare()
    assert again == ["pool0_0.nii.gz"]
    assert_same(take(loader(lists, preset_of(), None), 3), batches)

    # another preset: everything else is prepared, and the former files are gone
    before = {file.name for file in written(folder)}
    assert len(prepare(preset=preset_of(intensity={"policy": "zscore"}))[0]) == 7
    assert not before & {file.name for file in written(folder)}


def test_a_lasting_folder_serves_several_trainings(tmp_path, monkeypatch):
    lists, shared = scans(tmp_path / "data"), tmp_path / "shared"
    (shared / FOLDER).mkdir(parents=True)
    (shared / FOLDER / "note.txt").write_text("mine")
    first = loader(lists, preset_of(), CaseCache(0, shared, tmp_path / "run1"))
    expected = take(first, 3)
    first.close()
    assert not (tmp_path / "run1").exists()
    files = written(shared)
    reads = count_reads(monkeypatch)
    second = loader(lists, preset_of(), CaseCache(0, shared, tmp_path / "run2"))
    assert_same(expected, take(second, 3))
    assert not [name for name in reads if not name.startswith("validation")]
    second.close()
    assert written(shared) == files
    assert (shared / FOLDER / "note.txt").read_text() == "mine"


@pytest.mark.parametrize("run_folder", [True, False])
def test_the_end_of_a_training_removes_what_only_it_needed(tmp_path, run_folder):
    cache = CaseCache(0, run_folder=tmp_path / "run" if run_folder else None)
    stream = loader(scans(tmp_path / "data"), preset_of(), cache)
    expected = take(stream, 3)
    folder = cache.scratch
    assert any(folder.iterdir())
    assert folder.stat().st_mode & 0o077 == 0  # scans are nobody else's business
    stream.close()
    assert not folder.exists()
    assert_same(expected, take(stream, 3))  # a training that is prolonged


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    lists = scans(tmp_path / "data")
    expected = take(loader(lists, preset_of(), CaseCache(0, run_folder=tmp_path)), 3)
    for file in written(tmp_path):
        if file.suffix == ".npy":
            np.save(file, np.array([Evil()], dtype=object), allow_pickle=True)
            facts = file.with_name(re.sub("-[a-z]+.npy", ".json", file.name))
            content = json.loads(facts.read_text())
            part = content["tensors"][file.stem.split("-")[1]]
            part |= {"bytes": file.stat().st_size, "crc32": cache_module.read_mapped.__globals__["_checksum"](file)}
            facts.write_text(json.dumps(content))
    assert_same(expected, take(loader(lists, preset_of(), CaseCache(0, run_folder=tmp_path)), 3))
    assert not (tmp_path / "owned").exists()


# ------------------------------------------------------------------------------------------------ budget and estimate


@pytest.mark.parametrize("gb", [-1, math.nan, "1.5", "many", True, [1], -math.inf])
def test_a_budget_is_a_number_of_gigabytes(gb):
    with pytest.raises(DataError, match=r"cache_gb: must be a number of gigabytes >= 0, or null .*, got "):
        CaseCache(gb)


def test_a_folder_is_a_folder(tmp_path):
    for wrong in (5, False, ""):
        with pytest.raises(DataError, match="cache_dir: must be a folder, or null for the run's own, got "):
            CaseCache(0, wrong)
    (tmp_path / "file").write_text("mine")
    stream = loader(scans(tmp_path), preset_of(), CaseCache(0, tmp_path / "file"))
    with pytest.raises(DataError, match=r"cache_dir: must be a folder, got the file \S+file"):
        stream.prepare()
    assert (tmp_path / "file").read_text() == "mine"


def test_the_budget_holds_with_what_the_check_hands_over(tmp_path):
    lists = scans(tmp_path, n=(2, 6, 1))
    with handed_over(1e9) as memory:
        for entry in lists[1]:
            memory.keep(entry["image"], read_scan(entry["image"]))
        held = memory.held
        assert held == 6 * 20 * 18 * 17 * 4
        cache = CaseCache(0.0003, run_folder=tmp_path / "run")
        most, keep = [], cache.keep
        cache.keep = lambda *a: (keep(*a), most.append(cache.used + memory.held))[0]
        loader(lists, preset_of(), cache).prepare()
    assert max(most) <= 300_000
    assert memory.held == 0
    assert cache.used > 100_000


def test_what_is_said_before_the_work(tmp_path, caplog):
    caplog.set_level("INFO")
    lists = scans(tmp_path / "data")
    sizes = [footprint(entries, preset_of(), padded).bytes for entries, padded in zip(lists, (1, 1, 0), strict=True)]
    voxels = 20 * 18 * 17
    assert sizes == [2 * 5 * voxels, 3 * 4 * voxels, 5 * voxels]
    loader(lists, preset_of(), CaseCache(1, run_folder=tmp_path)).prepare()
    told = "labeled: 2 scans, 0.061 MB; validation: 1 scan, 0.031 MB; pool: 3 scans, 0.073 MB after preparation; "
    assert f"{told}all in memory, of which they may take 1 GB (cache_gb)" in caplog.text
    cache = CaseCache(SOME, run_folder=tmp_path)
    loader(lists, preset_of(), cache).prepare()
    assert f"{told}0.06 MB in memory (cache_gb), the rest memory-mapped in {cache.scratch}" in caplog.text
    assert "scans for validation read again each time" in caplog.text
    # nothing is said twice
    lines = len(caplog.records)
    take(loader(lists, preset_of(), cache), 1)
    assert len(caplog.records) == lines + 1


@pytest.mark.parametrize(
    ("more", "data"),
    [
        ({}, {}),
        ({"augmentation": {"policy": "literature"}}, {"sides": (12, 16, 30)}),
        ({"spacing": [1.5, 1.0, 2.0], "orientation": "LPS"}, {"sides": (21, 30, 9), "codes": "SAL"}),
        ({"center_crop": [9.0, None, 30.0]}, {"sides": (21, 30, 40), "codes": "SAL"}),
        ({"spatial_dims": 2, "patch_size": [16, 16], "window": {"stride": [8, 8]}, "resize": [24, 32]}, {}),
        ({"channels": ["a", "b"]}, {"channels": 2}),
    ],
)
def test_the_estimate_from_headers_is_what_is_prepared(tmp_path, more, data):
    preset = preset_of(**more)
    (labeled, *_) = scans(tmp_path, n=(1, 0, 0), **data)
    item = CaseDataset(labeled, training_preprocessing(preset))[0]
    assert case_bytes(labeled[0], preset) == sum(t.nelement() * t.element_size() for t in item.values())


def test_headers_of_any_format_and_of_none(tmp_path):
    import SimpleITK as sitk  # noqa: N813
    from PIL import Image

    image = sitk.GetImageFromArray(np.zeros((5, 30, 40), np.int16))
    image.SetSpacing((0.5, 2.0, 4.0))
    files = [tmp_path / f"a{suffix}" for suffix in (".nrrd", ".mha", ".nii.gz")]
    for file in files:
        sitk.WriteImage(image, str(file))
    preset = preset_of(spacing=[1.0, 1.0, 1.0])
    assert {case_bytes({"image": str(file)}, preset) for file in files} == {4 * 20 * 60 * 20}
    Image.new("L", (40, 30)).save(tmp_path / "b.png")
    np.save(tmp_path / "c.npy", np.zeros((40, 30), np.uint8))
    flat = preset_of(2)
    for name in ("b.png", "c.npy"):
        assert case_bytes({"image": str(tmp_path / name)}, flat) == 4 * 40 * 30
    broken = [{"image": str(tmp_path / "none.nii.gz")}, {"image": str(files[0])}]
    found = footprint(broken, preset)
    assert (found.cases, found.unknown) == (2, 1)
    assert str(found) == "at least 0.096 MB"
    assert prepared_shape((9, 30, 9), np.eye(4), preset_of()) == (16, 30, 16)


def test_a_full_disk_is_seen_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "free_space", lambda folder: 50_000)
    reads = count_reads(monkeypatch)
    stream = loader(scans(tmp_path / "data"), preset_of(), CaseCache(0, run_folder=tmp_path / "run"))
    with pytest.raises(
        DataError, match=r"0\.13 MB for the disk, and \S+run has 0\.05 MB free.*--cache_dir.*--cache_gb"
    ):
        stream.prepare()
    assert not reads


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_fills_up_is_named_and_left_clean(tmp_path, monkeypatch, error):
    count, real = itertools.count(), os.fsync

    def fsync(number):
        if next(count) > 4:
            raise OSError(error, os.strerror(error))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = tmp_path / "run"
    stream = loader(scans(tmp_path / "data"), preset_of(), CaseCache(0, run_folder=folder))
    with pytest.raises(DataError, match=r"cache: \S+run.*cannot write \((No space|Permission).*--cache_dir"):
        stream.prepare()
    assert (written(folder) == []) == (error == errno.ENOSPC)  # others on a full disk need the room more
    monkeypatch.setattr(os, "fsync", real)
    take(stream, 1)


def test_random_transforms_belong_to_the_stream():
    with pytest.raises(ValueError, match="transform must be deterministic, got RandFlipd"):
        CaseDataset([], Compose([RandFlipd("image")]))


# ------------------------------------------------------------------------------------------------------- the machine


def machine(root, groups, available=16_000_000, cgroup="0::/job/step"):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 32000000 kB\nMemAvailable: {available} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup + "\n")
    for path, text in groups.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return available_memory(root)


@pytest.mark.parametrize(
    ("groups", "cgroup", "expected"),
    [
        ({}, "0::/", 16_384_000_000),
        ({"job/memory.max": "max\n", "job/memory.current": "5\n"}, "0::/job/step", 16_384_000_000),
        # files in the cache are dropped when memory is needed
        (
            {
                "job/memory.max": "4000000000\n",
                "job/memory.current": "3000000000\n",
                "job/memory.stat": "anon 1000000000\ninactive_file 1500000000\nactive_file 500000000\n",
            },
            "0::/job/step",
            3_000_000_000,
        ),
        # a container sees its own group as the root
        ({"memory.max": "2000000000\n", "memory.current": "500000000\n"}, "0::/docker/abc", 1_500_000_000),
        (
            {
                "memory/slurm/job_7/memory.limit_in_bytes": "3000000000\n",
                "memory/slurm/job_7/memory.usage_in_bytes": "1000000000\n",
                "memory/slurm/job_7/memory.stat": "inactive_file 1\ntotal_inactive_file 400000000\n",
                "memory/slurm/job_7/step/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/slurm/job_7/step/memory.usage_in_bytes": "1\n",
            },
            "5:cpu,cpuacct:/\n4:memory:/slurm/job_7/step\n0::/",
            2_400_000_000,
        ),
        ({"memory.max": "1000\n", "memory.current": "2000\n"}, "0::/", 0),
    ],
)
def test_memory_that_is_really_available(tmp_path, groups, cgroup, expected):
    assert machine(tmp_path, groups, cgroup=cgroup) == expected


def test_limits_of_the_process_count(tmp_path, monkeypatch):
    import resource

    def limits(which):
        return (3_000_000_000 if which == resource.RLIMIT_AS else resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    monkeypatch.setattr(resource, "getrlimit", limits)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tpython\nVmSize:\t 1000000 kB\nVmData:\t 500000 kB\n")
    assert available_memory(tmp_path) == 3_000_000_000 - 1_024_000_000


@pytest.mark.parametrize(("budget", "told"), [(10**9, False), (10**5, True)])
def test_a_check_says_what_a_training_keeps(tiny_phantom, monkeypatch, budget, told):
    monkeypatch.setattr("monai_ssl.data.cache.default_budget", lambda: budget)
    found = monai_ssl.check(tiny_phantom, dataset="phantom")
    cases = found.datalist
    assert [need.cases for need in found.prepared.values()] == [
        len(section) for section in (cases.training, cases.validation, cases.unlabeled) if section
    ]
    sentence = found.memory
    assert sentence.startswith("prepared for training: labeled ")
    assert ("0.1 MB of it in memory" in sentence and "the rest on disk" in sentence) is told
