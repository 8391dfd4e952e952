"""What is wrong with images and labels, found before anything is computed."""
