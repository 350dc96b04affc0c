"""The pretrained networks: image generators with their text encoders, and SAM."""
