# %% [markdown]
# # Reading a report honestly
#
# Did the unlabeled scans help? Three trainings and some statistics answer that, or say that they
# cannot.

# %%
import os
from pathlib import Path

import monai_ssl

QUICK = bool(os.environ.get("MONAI_SSL_NOTEBOOK_QUICK"))
work = Path("notebook-report")

# %% [markdown]
# ## Floor, matched floor, method
#
# All with the same labels, the same number of iterations and the last iterate. (The ceiling, with all labels, is a
# fourth; see `monai-ssl demo`.)

# %%
from monai_ssl.curation.phantom import write_phantom

counts = {"n_labeled": 2, "n_unlabeled": 2, "n_testing": 3} if QUICK else {"n_unlabeled": 20, "n_testing": 16}
write_phantom(work / "data", n_validation=0, progress=False, **counts)
options = {"dataset": "phantom", "flavor": "practical", "num_workers": 0, "max_iterations": 400, "check": False}
if QUICK:
    options |= {"max_iterations": 2, "network_def#base_channels": 2}
TRAININGS = {
    "floor": ("supervised", {}),
    "matched_floor": ("dtc", {"method#unsupervised_weight": 0}),
    "method": ("dtc", {}),
}
scores = {}
for role, (bundle, extra) in TRAININGS.items():
    run = monai_ssl.train(bundle, work / "data", output=work / role, **options, **extra)
    scores[role] = monai_ssl.evaluate(run)
page = monai_ssl.report(work / "report.html", scores["method"], scores["floor"], scores["matched_floor"])
print(page)

# %% [markdown]
# ## Look at cases before means
#
# One failed case can move a mean by several points. A table of cases shows whether a difference is a shift of all or
# the luck of one.

# %%
for case in scores["method"].dice:
    print(case, {role: round(evaluation.dice[case], 3) for role, evaluation in scores.items()})

# %% [markdown]
# ## Which difference is the method's?
#
# Method minus *floor* answers "what would I have without all this?". It contains a larger batch and batch norm that
# has seen the unlabeled images. Method minus *matched floor* is what the unsupervised terms did.

# %%
from monai_ssl.metrics import compare

for reference in ("floor", "matched_floor"):
    result = compare(scores["method"].results.rows, scores[reference].results.rows)
    interval = f"[{result.ci_low:+.3f}, {result.ci_high:+.3f}]"
    print(f"method - {reference}: {result.mean_difference:+.3f} {interval}, better in {result.wins} of {result.n}, "
          f"p = {result.p_value:.2g}")  # fmt: skip

# %% [markdown]
# - The **interval** is of the mean difference over *these cases* and this one pair of trainings. Another seed gives
#   other networks; its spread is not inside.
# - The **p-value** is of the paired Wilcoxon test. With 5 cases it cannot fall below 0.06, however large the
#   difference: "too few cases to tell" is an answer.
# - Wins and losses tell what means hide.
#
# ## How far do seeds move it?
#
# On the left atrium at a quarter of the resolution, one method with three seeds ranges over seven points of Dice, as
# much as most differences that papers report ([table](../../docs/results/la_quarter/README.md)). So: several seeds,
# one row for each, and if you can, several splits.

# %%
import numpy as np

rng = np.random.default_rng(0)
values = np.array(list(scores["method"].dice.values()))
halves = [np.abs(np.diff([part.mean() for part in np.array_split(rng.permutation(values), 2)]))[0] for _ in range(200)]
print(f"two halves of the same test cases differ by {np.median(halves):.3f} Dice (median)")

# %% [markdown]
# If the difference between two methods is not larger than that between two halves of the test set, do not write a
# paper about it.
#
# ## Distances
#
# Overlap forgives far-off specks; the 95 % Hausdorff distance does not. Both conventions are in the results:
# millimeters, and the literature's voxels under its own name. An empty prediction is scored with the diagonal of the
# image, never with 0.

# %%
row = scores["method"].results.rows[0]
print({name: row[name] for name in row if "hd95" in name or "asd" in name})
