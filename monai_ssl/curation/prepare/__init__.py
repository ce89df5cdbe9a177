"""From the official download of a public data set to a checked datalist: ``monai-ssl prepare``."""

from monai_ssl.curation.prepare.acdc import Acdc
from monai_ssl.curation.prepare.brats2019 import Brats2019
from monai_ssl.curation.prepare.decathlon import Decathlon, Hippocampus
from monai_ssl.curation.prepare.engine import DatasetRecipe, Prepared, RawCase, Volume, build_recipe, prepare
from monai_ssl.curation.prepare.left_atrium import LeftAtrium
from monai_ssl.curation.prepare.mscmrseg2019 import MSCMRSeg2019
from monai_ssl.curation.prepare.pancreas_ct import PancreasCT
from monai_ssl.curation.prepare.published_splits import Split, available_splits, load_split, seeded_split

# a new data set: one file with a DatasetRecipe, and its name here
RECIPES: dict[str, type[DatasetRecipe]] = {
    recipe.name: recipe for recipe in (LeftAtrium, PancreasCT, Brats2019, Acdc, MSCMRSeg2019, Hippocampus, Decathlon)
}

__all__ = [
    "RECIPES",
    "DatasetRecipe",
    "Prepared",
    "RawCase",
    "Split",
    "Volume",
    "available_splits",
    "build_recipe",
    "load_split",
    "prepare",
    "seeded_split",
]
