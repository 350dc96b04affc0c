"""What to search: Ray Tune and Optuna, and nothing of where or how."""
