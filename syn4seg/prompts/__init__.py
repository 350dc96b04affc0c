"""HDIG: prompt agents, text embeddings, the de-duplicated bank."""
