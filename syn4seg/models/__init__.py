"""The pretrained networks behind three small Protocols: ImageGenerator, FeatureExtractor, MaskRefiner."""
