"""The samples of a run as other tools read them: VOC, COCO, Hugging Face, WebDataset, mmsegmentation, Parquet."""
