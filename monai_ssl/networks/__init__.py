"""Segmentation networks: image in, logits out, feature maps on the way; heads, teachers and memories beside them."""

from monai_ssl.networks.ema import EMATeacher
from monai_ssl.networks.encoder_decoder import EncoderDecoder
from monai_ssl.networks.heads import DualTaskNetwork, DualTaskVNet, FeatureNetwork
from monai_ssl.networks.prototypes import PointwiseHead, PrototypeMemory, VoxelHeads
from monai_ssl.networks.unet import UNet
from monai_ssl.networks.vnet import VNet

__all__ = [
    "DualTaskNetwork",
    "DualTaskVNet",
    "EMATeacher",
    "EncoderDecoder",
    "FeatureNetwork",
    "PointwiseHead",
    "PrototypeMemory",
    "UNet",
    "VNet",
    "VoxelHeads",
]
