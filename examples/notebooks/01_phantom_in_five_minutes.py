# %% [markdown]
# # A phantom in five minutes
#
# Synthetic scans of a heart-like organ: four with labels, twenty without. We train the same network twice, from
# labels only and with dual-task consistency on the unlabeled scans as well, and score both on scans that neither has
# seen.

# %%
import os
from pathlib import Path

import monai_ssl

# The tests run this notebook with tiny settings; leave the variable unset to see something.
QUICK = bool(os.environ.get("MONAI_SSL_NOTEBOOK_QUICK"))
folder = Path("notebook-phantom")

# %% [markdown]
# ## The data
#
# `write_phantom` writes NIfTI files and a `datalist.json`, as you would have them: the unlabeled scans have no label
# file at all. The same seed gives the same bytes.

# %%
from monai_ssl.curation.phantom import write_phantom

counts = {"n_labeled": 2, "n_unlabeled": 2, "n_testing": 2} if QUICK else {"n_unlabeled": 20, "n_testing": 10}
datalist = write_phantom(folder / "data", n_validation=0, seed=0, progress=False, **counts)
cases = monai_ssl.data.load_datalist(datalist)
print(cases.counts())

# %% [markdown]
# ## One look before anything else

# %%
import matplotlib.pyplot as plt
import nibabel as nib

image = nib.load(cases.training[0]["image"]).get_fdata()
label = nib.load(cases.training[0]["label"]).get_fdata()
middle = int(label.sum((0, 1)).argmax())
figure, axes = plt.subplots(1, 2, figsize=(8, 4))
for axis in axes:
    axis.imshow(image[:, :, middle].T, cmap="gray", origin="lower")
    axis.axis("off")
axes[1].contour(label[:, :, middle].T, levels=[0.5], colors="yellow")
figure.savefig(folder / "look.png")

# %% [markdown]
# ## Two trainings
#
# `train` returns a `Run`: the folder with weights, logs and everything needed to resume. Run this cell again after an
# interruption, and it continues where it was.
#
# The preset `phantom` holds what belongs to the data. Everything else is an option of the bundle; names that Python's
# syntax does not allow go into a dictionary.

# %%
settings = {"dataset": "phantom", "flavor": "practical", "num_workers": 0, "max_iterations": 400}
if QUICK:
    settings |= {"max_iterations": 2, "network_def#base_channels": 2}

dtc = monai_ssl.train("dtc", folder / "data", output=folder / "dtc", **settings)
matched = monai_ssl.train(
    "dtc", folder / "data", output=folder / "matched", **settings, **{"method#unsupervised_weight": 0}
)
print(dtc.complete, dtc.iteration)

# %% [markdown]
# The second training is the *matched floor*: the same network and the same batches, with the weight of the
# unsupervised term at 0. What DTC gains over it is due to the consistency between its two tasks, and to nothing else.
#
# ## Scores
#
# On the original grid, per case.

# %%
scores = {name: monai_ssl.evaluate(run) for name, run in {"DTC": dtc, "matched floor": matched}.items()}
for name, evaluation in scores.items():
    print(name, {case: round(value, 3) for case, value in evaluation.dice.items()})

# %% [markdown]
# One seed on a handful of scans says little: [reading a report honestly](04_reading_a_report.py) shows how little.
#
# ## Segment

# %%
predictions = monai_ssl.predict(dtc, folder / "data" / "images", folder / "segmentations")
print(predictions)
