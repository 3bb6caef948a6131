"""Measurements of a checkpoint: pure jitted functions, and the table they fill."""
