"""Segmentation networks: image in, logits out, feature maps on the way."""

from monai_ssl.networks.encoder_decoder import EncoderDecoder
from monai_ssl.networks.heads import DualTaskNetwork, DualTaskVNet
from monai_ssl.networks.unet import UNet
from monai_ssl.networks.vnet import VNet

__all__ = ["DualTaskNetwork", "DualTaskVNet", "EncoderDecoder", "UNet", "VNet"]
