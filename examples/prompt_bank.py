"""HDIG's bank: a prompt is accepted if its embedding is near none that was accepted before."""

import numpy as np

import syn4seg


def encoder(texts):
    """Embeddings (N, 26), by letters; a text encoder in earnest."""
    return np.array([[text.count(chr(97 + i)) for i in range(26)] for text in texts], float)


bank = syn4seg.PromptBank(lambda_prompt=0.97, class_name="dog", encoder=encoder)
bank.offer(["a dog on a beach", "a dog on the beach", "two dogs in deep snow", "a cat", "a beach dog on a"])

for candidate in bank.accepted + bank.refused:
    print(f"{candidate.text!r}: {candidate.why or 'accepted'}, similarity {candidate.similarity}")
