"""Trials of a sweep: the stage cache, and a run's last row made from cached stages."""
