"""The method as a library, without Ray and without a run: what `import syn4seg` offers, on NumPy arrays or torch tensors.

    import syn4seg

    kept = syn4seg.filter_regions(draft, features, {3: prototype}, target=3).kept

Rules of every function here:

- label maps are (H, W) of any integer type: 0 background, 1 to 254 classes, 255 unlabeled;
- features are one image's raw map (D, h, w), on any grid that divides the image evenly;
- returned arrays are of the kind of the first argument: NumPy for NumPy, a tensor on the same device for a tensor;
- no argument is changed; gradients do not pass; the arithmetic is NumPy's on the CPU, whatever the input;
- what cannot be computed is a ValueError that says what was passed, what was expected and what to do.

Defaults are those of the configuration. The arithmetic itself is in `syn4seg.labeling`, `syn4seg.prompts`, `syn4seg.segmenter`.
"""
