"""Data sets: the embedded world and folders in VOC layout; folds and support draws."""
