"""MONAI Deploy: a DICOM series in, the segmentation of a packaged bundle, a DICOM SEG out.

    python app.py -i SERIES_DIR -o OUTPUT_DIR -m my_bundle/models/model.ts

``model.ts`` carries configs and metadata of the bundle, so the one file is all that the app needs beside monai_ssl.
The operators are those of the MONAI Deploy App SDK, with the network run by the engine of the bundle's own inference;
the series is checked and tidied first, since the SDK's loader drops a series without SeriesNumber, and its writer fails
where PatientBirthDate is absent.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application
from monai.deploy.core.domain import Image
from monai.deploy.core.io_type import IOType
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_seg_writer_operator import DICOMSegmentationWriterOperator, SegmentDescription
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator
from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator
from pydicom.sr.coding import Code

from monai_ssl.data import load_preset
from monai_ssl.deploy.dicom import completed, read_series, segment_category, segment_code
from monai_ssl.engines import VolumeSegmenter


def tidy(source: Path, target: Path) -> None:
    """Copy a series, completed where headers lack something; refuse what is no whole series of single images."""
    series = read_series(source)
    for note in series.warnings:
        logging.getLogger(__name__).warning("dicom: %s", note)
    for number, dataset in enumerate(completed(series), 1):
        dataset.save_as(target / f"{number:05d}.dcm")


def of_bundle(model: Path) -> tuple[dict[str, Any], list[SegmentDescription]]:
    """Metadata of an exported bundle, and its classes as DICOM names them."""
    extra = {"metadata.json": "", "inference.json": ""}
    torch.jit.load(str(model), _extra_files=extra)
    meta = json.loads(extra["metadata.json"])
    preset = load_preset(json.loads(extra["inference.json"])["dataset"])
    segments = [
        SegmentDescription(
            segment_label=name,
            segmented_property_category=Code(*segment_category(preset, index)),
            segmented_property_type=Code(*segment_code(preset, index)),
            algorithm_name=meta["name"][:64],
            algorithm_version=meta["version"],
        )
        for index, name in preset.labels.items()
        if index
    ]
    return meta, segments


class SegmentOperator(MonaiBundleInferenceOperator):
    """The SDK's operator; the bundle's own engine takes the network through the volume, slab by slab."""

    def pre_process(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        self._prepared = super().pre_process(data, *args, **kwargs)
        return dict(self._prepared)

    def predict(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        network = getattr(self._model_network, "predictor", self._model_network)
        segmenter = VolumeSegmenter(self._device, network, self._preproc, self._inferer, self._postproc)
        found = segmenter.infer(self._prepared)["pred"]
        return found[None] if isinstance(found, torch.Tensor) else found  # the SDK takes a batch apart


class SegmentationApp(Application):
    """Load, select, stack, segment, write."""

    def compose(self) -> None:
        context = Application.init_app_context(self.argv)
        self._folder = tempfile.TemporaryDirectory(prefix="series-")
        tidy(Path(context.input_path), Path(self._folder.name))
        _, segments = of_bundle(Path(context.model_path))
        load = DICOMDataLoaderOperator(self, CountCondition(self, 1), input_folder=Path(self._folder.name), name="load")
        select = DICOMSeriesSelectorOperator(self, name="select")
        stack = DICOMSeriesToVolumeOperator(self, name="stack")
        segment = SegmentOperator(
            self,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            app_context=context,
            name="segment",
        )
        write = DICOMSegmentationWriterOperator(
            self, segment_descriptions=segments, output_folder=Path(context.output_path), name="write"
        )
        self.add_flow(load, select, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(select, stack, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(stack, segment, {("image", "image")})
        self.add_flow(select, write, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(segment, write, {("pred", "seg_image")})


if __name__ == "__main__":
    SegmentationApp().run()
