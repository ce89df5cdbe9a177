"""Segmentation networks: image in, logits out, feature maps on the way; heads, teachers and memories."""

from monai_ssl.networks.adapters import FeatureNetwork, TappedNetwork
from monai_ssl.networks.cross_sample import CrossSampleAttention, CrossSampleNetwork
from monai_ssl.networks.discriminator import Discriminator
from monai_ssl.networks.ema import EMATeacher
from monai_ssl.networks.encoder_decoder import EncoderDecoder
from monai_ssl.networks.heads import DualTaskNetwork, DualTaskVNet
from monai_ssl.networks.initialization import initialize
from monai_ssl.networks.literature import literature_dual_task_network, literature_network
from monai_ssl.networks.memory_bank import MemoryBank
from monai_ssl.networks.prototypes import PrototypeMemory
from monai_ssl.networks.tensors import unlabeled_rows
from monai_ssl.networks.unet import UNet
from monai_ssl.networks.vnet import VNet
from monai_ssl.networks.voxel_heads import PointwiseHead, VoxelHeads

__all__ = [
    "CrossSampleAttention",
    "CrossSampleNetwork",
    "Discriminator",
    "DualTaskNetwork",
    "DualTaskVNet",
    "EMATeacher",
    "EncoderDecoder",
    "FeatureNetwork",
    "MemoryBank",
    "PointwiseHead",
    "PrototypeMemory",
    "TappedNetwork",
    "UNet",
    "VNet",
    "VoxelHeads",
    "initialize",
    "literature_dual_task_network",
    "literature_network",
    "unlabeled_rows",
]
