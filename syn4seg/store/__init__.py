"""What a run is on disk: files, tables, tensors, the two layouts of samples, the run directory."""
