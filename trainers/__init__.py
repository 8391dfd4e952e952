"""LDSegTrainer and what it is made of."""
