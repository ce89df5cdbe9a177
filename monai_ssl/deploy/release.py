"""From a trained run to what others use: a self-contained bundle, an app of MONAI Label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_ssl.errors import UsageError
from monai_ssl.runs.folder import Run
from monai_ssl.runs.train import american_overrides, refuse_preset_keys


def package(
    run: str | Path | Run | Sequence[str | Path | Run],
    output: str | Path,
    name: str | None = None,
    onnx: bool = False,
    ckpt: str | Path | None = None,
) -> Path:
    """Make a self-contained bundle from a trained run: weights, exported networks, configs, model card.

    Args:
        run: folder that `monai-ssl train` wrote; evaluate it first, so that the model card has scores. Several runs,
            one after the other, become one bundle that segments by the mean of their class probabilities.
        output: new folder.
        name: title of the model; default: data set and method.
        onnx: also export ONNX.
        ckpt: other weights than RUN/model.pt.

    Returns:
        the folder.

    Raises:
        DataError: when it is not empty, or an exported network computes other values than the trained one.

    Example:
        >>> package("runs/dtc-left_atrium-seed0", "left_atrium_segmentation")  # doctest: +SKIP
    """
    from monai_ssl.deploy.package import package_ensemble, package_run
    from monai_ssl.runs.ensemble import members_of

    members = members_of(run)
    if members is not None:
        if ckpt is not None:
            raise UsageError("package: --ckpt goes with one run")
        return package_ensemble(members, output, name, onnx)
    trained = Run.open(run)  # type: ignore[arg-type]
    folder, settings = trained.settings(["train.yaml", "inference.yaml"], {})
    del settings["dataset"]  # the package carries its own
    weights = trained.weights(ckpt)
    return package_run(folder, trained.folder, trained.record.model_dump(), settings, weights, output, name, onnx)


def label_app(
    output: str | Path,
    bundles: Sequence[str] = ("dtc",),
    dataset: str | Path | None = None,
    flavor: str | None = None,
    **overrides: Any,
) -> Path:
    """Write an app of MONAI Label: it trains on the labeled and the unlabeled scans of its datastore.

    Args:
        output: new folder.
        bundles: names, or folders of packaged bundles, separated by commas.
        dataset: preset: a name or the path of your own YAML; default: the bundle's own.
        flavor: of the preset; default: practical, where there is one.
        **overrides: any id of the bundles' configs/train.yaml: labeled_batch_size, ...

    Returns:
        the folder.

    Raises:
        DataError: when it is not empty, or a bundle, preset or id is unknown.

    Example:
        >>> label_app("app", ["dtc", "caml"], dataset="left_atrium")  # doctest: +SKIP
    """
    names = [str(name).strip() for name in bundles if str(name).strip()]
    if not names:
        raise UsageError(f"--bundles: must name a bundle, got {','.join(bundles)!r}")

    from monai_ssl.bundle.overrides import literal
    from monai_ssl.deploy.package import write_label_app
    from monai_ssl.runs.warm_start import weights_file

    source = None if dataset is None else str(dataset)
    overrides = american_overrides(overrides)
    refuse_preset_keys(overrides)
    if overrides.get("init") is not None:  # the server runs elsewhere
        overrides["init"] = literal(weights_file(overrides["init"]))
    return write_label_app(output, names, source, flavor, overrides)
