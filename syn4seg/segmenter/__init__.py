"""The network that is trained and scored: architecture, base and novel stages, evaluation."""
