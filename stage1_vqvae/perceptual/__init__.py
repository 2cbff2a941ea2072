"""Losses for sharp pictures, beside the error of pixels: distances in frozen features, and of spatial frequencies."""

from stage1_vqvae.perceptual.classifier import ClassFeatures, train_classifier
from stage1_vqvae.perceptual.distance import FeatureDistance, unit_length
from stage1_vqvae.perceptual.frequency import focal_frequency
from stage1_vqvae.perceptual.k_means import KMeansFeatures
from stage1_vqvae.perceptual.vgg import VggFeatures

__all__ = [
    "ClassFeatures",
    "FeatureDistance",
    "KMeansFeatures",
    "VggFeatures",
    "focal_frequency",
    "train_classifier",
    "unit_length",
]
