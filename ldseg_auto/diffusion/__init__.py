"""Schedules, training objective and samplers of the latent diffusion; pure torch."""
