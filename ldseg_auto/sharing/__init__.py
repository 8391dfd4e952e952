"""A trained model as one checked zip: written by `export`, read by `archive`, put in place by `install`."""
