"""Data sets: the embedded world, folders in VOC layout, PASCAL and COCO; folds and support draws."""
