"""A data set made on the spot, and the whole way from it to pictures."""
