"""Profiles day by day: where they lie, how far they moved, whether the models still fit, old and new spaces as one."""
