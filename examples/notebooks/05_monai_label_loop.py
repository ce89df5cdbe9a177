# %% [markdown]
# # Annotate, train, ask again
#
# Active learning: train on what is annotated *and* on the pool, ask which scan would teach most, annotate it, repeat.
# The first part runs the loop in Python, with labels that we pretend to draw. The second writes the app that does the
# same inside MONAI Label, and drives it through its Python objects where MONAI Label is installed.

# %%
import importlib.util
import json
import os
import shutil
from pathlib import Path

import monai_ssl

QUICK = bool(os.environ.get("MONAI_SSL_NOTEBOOK_QUICK"))
work = Path("notebook-label").resolve()

# %%
from monai_ssl.curation.phantom import write_phantom

n_unlabeled = 3 if QUICK else 16
datalist = write_phantom(
    work / "data", 2, n_unlabeled, n_validation=0, n_testing=2 if QUICK else 8, progress=False, reference_labels=True
)
answers = {path.name: path for path in (work / "data" / "labels_unlabeled").iterdir()}
state = json.loads(datalist.read_text())
print(len(state["training"]), "annotated,", len(state["unlabeled"]), "in the pool")

# %% [markdown]
# ## The loop
#
# DTC has two opinions of every scan: its segmentation, and the one that its distance map implies. Where they
# contradict each other, a label teaches most. `DisagreementScorer` computes one minus their soft Dice.

# %%
from monai_ssl.bundle.library import find_bundle
from monai_ssl.deploy.disagreement import DisagreementScorer

options = {"dataset": "phantom", "flavor": "practical", "num_workers": 0, "max_iterations": 200}
if QUICK:
    options |= {"max_iterations": 2, "network_def#base_channels": 2}

for turn in range(2):
    current = work / "data" / f"turn{turn}.json"
    current.write_text(json.dumps(state))
    run = monai_ssl.train("dtc", work / "data", current, output=work / f"turn{turn}", check=False, **options)
    seen = {key: value for key, value in options.items() if key.startswith(("dataset", "flavor", "network"))}
    scorer = DisagreementScorer(find_bundle("dtc"), run.checkpoint, ckpt=str(run.model), device="cpu", **seen)
    ranking = {case["image"]: scorer(work / "data" / case["image"]) for case in state["unlabeled"]}
    chosen = max(ranking, key=ranking.get)
    dice = monai_ssl.evaluate(run).dice
    print(f"turn {turn}: Dice {sum(dice.values()) / len(dice):.3f}; next: {Path(chosen).name} ({ranking[chosen]:.3f})")
    # "annotate" it
    label = work / "data" / "labels" / Path(chosen).name
    shutil.copyfile(answers[Path(chosen).name], label)
    state["unlabeled"] = [case for case in state["unlabeled"] if case["image"] != chosen]
    state["training"].append({"image": chosen, "label": f"labels/{Path(chosen).name}"})

# %% [markdown]
# Most of a rise from turn to turn is training, not the one label. To see what a *choice* of scans is worth, compare
# with random choices, over several seeds, with trainings of the same length.
#
# ## In MONAI Label
#
# The app trains on the annotated scans and on the pool, and offers the strategy `disagreement`.

# %%
app_folder = work / "app"
if not app_folder.exists():
    small = {key: value for key, value in options.items() if key.startswith("network")}
    monai_ssl.label_app(app_folder, ["dtc"], dataset="phantom", **small)
print(sorted(path.name for path in app_folder.iterdir()))

# %%
if importlib.util.find_spec("monailabel") is None:
    print("MONAI Label is not installed here: it needs an environment of its own, see docs/monai_label.md")
else:
    studies = work / "studies"
    if not studies.exists():
        (studies / "labels" / "final").mkdir(parents=True)
        for case in state["training"] + state["unlabeled"]:
            shutil.copyfile(work / "data" / case["image"], studies / Path(case["image"]).name)
        for case in state["training"]:
            name = Path(case["image"]).name
            shutil.copyfile(work / "data" / "labels" / name, studies / "labels" / "final" / name)
    # after a training the app would ask its server to score the scans; there is none here, so we ask ourselves
    os.environ["MONAI_LABEL_AUTO_UPDATE_SCORING"] = "false"
    from monai_ssl.deploy.label import SemiSupervisedApp

    app = SemiSupervisedApp(str(app_folder), str(studies), {})
    print(app.train({"model": "dtc", "max_iterations": options["max_iterations"], "dataset": "Dataset"}))
    print(app.scoring({"method": "dtc"}))
    print(app.next_sample({"strategy": "disagreement"})["id"])

# %% [markdown]
# With a server: `monailabel start_server --app app --studies scans`, then *Next Sample*, *Submit Label* and *Train*
# in 3D Slicer. [The walkthrough](../../docs/monai_label.md).
