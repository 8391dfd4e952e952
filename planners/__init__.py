"""Planning: nnU-Net's decisions, plus the latent and the memory of this network."""
