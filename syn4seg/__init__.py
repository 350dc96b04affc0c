"""Syn4Seg: generalized few-shot segmentation that makes up its missing data. The method, free of Ray."""
