"""Losses for sharp pictures, beside the error of pixels: distances in frozen features, and of spatial frequencies."""

from stage1_vqvae.perceptual.distance import FeatureDistance, unit_length
from stage1_vqvae.perceptual.frequency import focal_frequency
from stage1_vqvae.perceptual.k_means import KMeansFeatures

__all__ = ["FeatureDistance", "KMeansFeatures", "focal_frequency", "unit_length"]
