"""A trained segmenter outside of its run: its folder, its predictions, and its forms for other programs. Free of Ray."""
