"""Prediction: tiles, noise, samples and folds averaged as probabilities."""
