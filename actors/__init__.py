"""Where things run: Ray actors and streams around `syn4seg`, and nothing of the method."""
