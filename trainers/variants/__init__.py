"""Variants of LDSegTrainer: a few overridden settings each."""
