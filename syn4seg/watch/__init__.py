"""`syn4seg watch`: the course of a run (`timeline`), its current state (`state`), and its display in a terminal (`screen`)."""
