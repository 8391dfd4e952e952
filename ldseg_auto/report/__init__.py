"""What a trained model is, how it was made and how well it does, as one HTML page."""
