"""Measuring a segmentation against the truth."""
