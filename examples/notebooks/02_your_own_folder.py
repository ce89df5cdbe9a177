# %% [markdown]
# # Your own folder
#
# From a folder of NIfTI files to a model: split, describe, check, train, predict. Point `folder` at your own data; as
# it stands, the notebook makes some up.

# %%
import os
from pathlib import Path

import monai_ssl

QUICK = bool(os.environ.get("MONAI_SSL_NOTEBOOK_QUICK"))
work = Path("notebook-own")
folder = work / "scans"

# %% [markdown]
# A folder `images` with all scans and a folder `labels` with the annotations of some, named alike. That is all that
# is asked for.

# %%
import shutil

from monai_ssl.curation.phantom import write_phantom

if not folder.exists():
    source = write_phantom(work / "phantom", 6, 4 if QUICK else 24, n_validation=0, n_testing=0, progress=False).parent
    shutil.copytree(source / "images", folder / "images")
    shutil.copytree(source / "labels", folder / "labels")
print(len(list((folder / "images").iterdir())), "images,", len(list((folder / "labels").iterdir())), "labels")

# %% [markdown]
# ## Split
#
# Decided once, by a seed: which cases are labeled, for validation, for testing. Images without a label are the
# unlabeled pool. With several scans per patient, `patient_pattern` keeps a patient on one side.
#
# `split` also proposes a preset, with a reason for every value.

# %%
split = monai_ssl.split(folder, n_labeled=3, n_validation=1, n_testing=2, seed=0, overwrite=True)
print(split)
print("\n".join(split.reasons))

# %% [markdown]
# ## Describe and check
#
# `describe` writes one page; open it before you train. `check` reads every file and returns what it found wrong.

# %%
page = monai_ssl.describe(folder)
problems = monai_ssl.check(folder, dataset=split.preset)
print(page)
for problem in problems:
    print(problem)

# %% [markdown]
# What does it find? Let us break a label, a value that no class has, and ask again.

# %%
import nibabel as nib
import numpy as np

victim = Path(split.datalist.training[0]["label"])
intact = victim.read_bytes()
label = nib.load(victim)
array = np.asarray(label.dataobj).astype(np.uint8)
array[0, 0, 0] = 7
nib.save(nib.Nifti1Image(array, label.affine), victim)
found = monai_ssl.check(folder, dataset=split.preset).errors
print(found[0])
victim.write_bytes(intact)

# %% [markdown]
# A training would have stopped with the same line: what `check` accepts is what training reads.
#
# ## Adapt the preset, train
#
# Give classes their names, say along which axes a mirrored scan is plausible, choose a patch that holds the organ
# with some surroundings. All keys are explained in [data sets](../../docs/datasets.md).

# %%
import yaml

preset = yaml.safe_load(Path(split.preset).read_text())
preset["labels"] = {0: "background", 1: "atrium"}
if QUICK:
    preset["patch_size"] = [16, 16, 16]
mine = work / "my_data.yaml"
mine.write_text(yaml.safe_dump(preset, sort_keys=False))

options = {"max_iterations": 1000, "num_workers": 0}
if QUICK:
    options = {"max_iterations": 2, "num_workers": 0, "network_def#base_channels": 2}
run = monai_ssl.train("dtc", folder, dataset=mine, output=work / "run", **options)

# %% [markdown]
# ## Evaluate and predict
#
# Segmentations are on the grid of the images that you give, whatever the preset resampled in between.

# %%
print(monai_ssl.evaluate(run))
new = split.datalist.testing[0]["image"]
print(monai_ssl.predict(run, new, work / "segmentations", uncertainty=True))
