"""What a run will make and cost, before anything starts."""
