"""Measurements of training: what a bias costs, where a step goes, what the machine can do."""
