"""What `syn4seg VERB` does, verb by verb, on one run directory; no Ray in here."""
