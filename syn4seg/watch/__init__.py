"""`syn4seg watch`: the course of a run (`timeline`), its current state (`state`), and its display in a terminal (`screen`).

`syn4seg ls` shows the runs of a folder (`overview`).
"""
