"""Other people's folders of photos and annotations: recognized (`formats`), read (`masks`, `outlines`, `exported`).

`making` is `syn4seg init`; `publishing` keeps what lies at its target; nothing of the source is ever changed.
"""
