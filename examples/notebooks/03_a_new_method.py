# %% [markdown]
# # A new method in one file
#
# A method is a module that owns its networks and turns a labeled and an unlabeled batch into named loss terms. This
# notebook starts one, changes its idea, tries it on random numbers, and trains it with everything that the others
# have: mixed precision, exact resume, logs, evaluation.

# %%
import os
import sys
from pathlib import Path

import torch

import monai_ssl

QUICK = bool(os.environ.get("MONAI_SSL_NOTEBOOK_QUICK"))
work = Path("notebook-method")

# %% [markdown]
# ## Start
#
# `new_method` (on the command line: `monai-ssl new-method confident`) writes a method that trains at once, its
# bundle, its page and a test. Four files are yours, the others are rendered from them.

# %%
from monai_ssl.bundle.new_method import new_method

folder = work / "confident"
if not folder.exists():
    for path in new_method("confident", output=folder):
        print(path)

# %% [markdown]
# It begins as entropy minimization: predictions on unlabeled images should be confident. Here is the part that
# matters.

# %%
file = folder / "confident.py"
source = file.read_text()
print(source[source.index("    def forward") :])

# %% [markdown]
# Three conventions do the work. The terms are already *weighted*: the trainer adds them up. Everything a step
# computes is inside `forward`, so several GPUs need nothing else. And `unsupervised_weight` scales every unsupervised
# term, so that 0 is the method's own [matched floor](../../docs/concepts/matched_floor.md).
#
# ## The idea
#
# The gradient of the entropy is steepest where a prediction is almost certain. Let us ask for confidence with the
# Gini impurity instead, $1 - \sum_c p_c^2$, which is flat there.

# %%
entropy = """            log_p = logits[n_labeled:].log_softmax(1)
            entropy = -(log_p.exp() * log_p).sum(1).mean()
            terms["entropy"] = self.unsupervised_weight * self.ramp_up(self.iteration) * entropy
"""
impurity = """            impurity = 1 - logits[n_labeled:].softmax(1).square().sum(1).mean()
            terms["impurity"] = self.unsupervised_weight * self.ramp_up(self.iteration) * impurity
"""
assert entropy in source or impurity in source
file.write_text(source.replace(entropy, impurity))

# %% [markdown]
# ## Try it on random numbers

# %%
sys.path.insert(0, str(folder.resolve()))
from confident import Confident

from monai_ssl.networks import VNet

torch.manual_seed(0)
method = Confident(VNet(spatial_dims=2, base_channels=4), max_iterations=30)
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
# The unsupervised term begins at almost nothing, because its weight is ramped up: early predictions deserve no
# confidence.
#
# ## Train it
#
# The folder is a complete bundle, so its path takes the place of a method's name. Next to it, its matched floor.

# %%
from monai_ssl.curation.phantom import write_phantom

counts = {"n_labeled": 2, "n_unlabeled": 2, "n_testing": 1} if QUICK else {"n_unlabeled": 20, "n_testing": 10}
write_phantom(work / "data", n_validation=0, progress=False, **counts)
options = {"dataset": "phantom", "num_workers": 0, "max_iterations": 400}
if QUICK:
    options |= {"max_iterations": 2, "network_def#base_channels": 2}
run = monai_ssl.train(folder, work / "data", output=work / "run", **options)
floor = monai_ssl.train(folder, work / "data", output=work / "matched", **options, **{"method#unsupervised_weight": 0})
print(monai_ssl.evaluate(run))
print(monai_ssl.evaluate(floor))

# %% [markdown]
# The terms of every iteration are in the log, under the names that `forward` gave them.

# %%
import csv

with (run.folder / "training.csv").open() as log:
    print(list(csv.DictReader(log))[-1])

# %% [markdown]
# ## Make it stay
#
# In a clone, `monai-ssl new-method confident` puts the files where the other methods are. A method that stays has a
# page that says how it works and when it fails, a test against its equations, and a line in the changelog: [the
# guide](../../CONTRIBUTING.md).
