# %% [markdown]
# # A new method in one file
#
# A method is a module that owns its networks and turns a labeled and an unlabeled batch into named loss terms. This notebook
# writes one, entropy minimization, tries it on random numbers, and trains it with everything that the others have: mixed
# precision, exact resume, logs, evaluation.

# %%
import os
import sys
from pathlib import Path

import torch

import monai_ssl

QUICK = bool(os.environ.get("MONAI_SSL_NOTEBOOK_QUICK"))
work = Path("notebook-method")
work.mkdir(exist_ok=True)

# %% [markdown]
# ## The file

# %%
SOURCE = '''"""Entropy minimization: predictions on unlabeled images should be confident."""

from monai_ssl.losses import HalfDiceCELoss, SigmoidRampUp
from monai_ssl.methods import SemiSupervisedMethod


class Confident(SemiSupervisedMethod):
    """Supervised loss plus the ramped-up mean entropy of the predictions on unlabeled images."""

    def __init__(self, network, max_iterations=6000, weight=0.1, unsupervised_weight=1.0):
        super().__init__(network, unsupervised_weight)
        self.supervised = HalfDiceCELoss()
        self.ramp_up = SigmoidRampUp(max_iterations, weight)

    def forward(self, labeled, unlabeled=None):
        terms = {"supervised": self.supervised(self.network(labeled["image"]).float(), labeled["label"])}
        if unlabeled is not None:
            log_p = self.network(unlabeled["image"]).float().log_softmax(1)
            entropy = -(log_p.exp() * log_p).sum(1).mean()
            terms["entropy"] = self.unsupervised_weight * self.ramp_up(self.iteration) * entropy
        return terms
'''
(work / "confident.py").write_text(SOURCE)
sys.path.insert(0, str(work.resolve()))

# %% [markdown]
# Three conventions do the work. The terms are already *weighted*: the trainer adds them up. Everything a step computes is
# inside `forward`, so several GPUs need nothing else. And `unsupervised_weight` scales every unsupervised term, so that 0 is
# the method's own [matched floor](../../docs/concepts/matched_floor.md).
#
# ## Try it on random numbers

# %%
from confident import Confident

from monai_ssl.networks import VNet

torch.manual_seed(0)
method = Confident(VNet(spatial_dims=2, base_channels=4), max_iterations=100)
optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
label = torch.zeros(2, 1, 32, 32, dtype=torch.long)
label[..., 8:24, 8:24] = 1
labeled = {"image": label + 0.5 * torch.randn(label.shape), "label": label}
unlabeled = {"image": label + 0.5 * torch.randn(label.shape)}
for _ in range(2 if QUICK else 30):
    terms = method(labeled, unlabeled)
    optimizer.zero_grad()
    sum(terms.values()).backward()
    optimizer.step()
    method.after_step()
    if method.iteration % 10 == 1:
        print(method.iteration, {name: round(term.item(), 4) for name, term in terms.items()})

# %% [markdown]
# The entropy term begins at almost nothing, because its weight is ramped up: early predictions deserve no confidence.
#
# ## Train it
#
# The block `method` of any bundle's config can be replaced. We take the supervised bundle, whose network is a plain V-Net, and
# let the unlabeled images in.

# %%
from monai_ssl.curation.phantom import write_phantom

counts = {"n_labeled": 2, "n_unlabeled": 2, "n_testing": 1} if QUICK else {"n_unlabeled": 20, "n_testing": 10}
write_phantom(work / "data", n_validation=0, progress=False, **counts)
block = {
    "_target_": "confident.Confident",
    "network": "@network",
    "max_iterations": "@max_iterations",
    "unsupervised_weight": 1.0,
}
options = {"dataset": "phantom", "num_workers": 0, "max_iterations": 400, "unlabeled_batch_size": 2, "method": block}
if QUICK:
    options |= {"max_iterations": 2, "network_def#base_channels": 2}
run = monai_ssl.train("supervised", work / "data", output=work / "run", **options)
print(monai_ssl.evaluate(run))

# %% [markdown]
# The terms of every iteration are in the log, under the names that `forward` gave them.

# %%
import csv

rows = list(csv.DictReader((run.folder / "training.csv").open()))
print(rows[-1])

# %% [markdown]
# ## Make it stay
#
# A method that stays gets a bundle with a page, a test against its equations, and a line in the changelog:
# [the guide](../../CONTRIBUTING.md).
