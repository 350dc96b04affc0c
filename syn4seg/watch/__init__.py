"""`syn4seg watch`: what a run tells (`story`), how it is now (`state`), and how that looks in a terminal (`screen`)."""
