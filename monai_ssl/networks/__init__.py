"""Segmentation networks: image in, logits out, feature maps on the way."""

from monai_ssl.networks.correlation_head import CorrelationHead, ProjectionHead
from monai_ssl.networks.cross_sample import CrossSampleAttention, CrossSampleNetwork
from monai_ssl.networks.encoder_decoder import EncoderDecoder
from monai_ssl.networks.heads import DualTaskNetwork, DualTaskVNet
from monai_ssl.networks.memory_bank import MemoryBank
from monai_ssl.networks.plans import BackboneWithHead, TappedNetwork, literature_network
from monai_ssl.networks.unet import UNet
from monai_ssl.networks.vnet import VNet

__all__ = [
    "BackboneWithHead",
    "CorrelationHead",
    "CrossSampleAttention",
    "CrossSampleNetwork",
    "DualTaskNetwork",
    "DualTaskVNet",
    "EncoderDecoder",
    "MemoryBank",
    "ProjectionHead",
    "TappedNetwork",
    "UNet",
    "VNet",
    "literature_network",
]
