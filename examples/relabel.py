"""APR on one image: free pixels (255) take the class whose prototype they resemble, if one is clear. Here with torch tensors."""

import torch

import syn4seg

kept = torch.zeros(32, 32, dtype=torch.uint8)
kept[4:12, 4:12] = 3
kept[4:12, 12:20] = 255  # freed by filtering, but it is the same object
features = torch.zeros(2, 8, 8)
features[1] = 1
features[:, 1:3, 1:5] = torch.tensor([1.0, 0.0])[:, None, None]
prototypes = {0: torch.tensor([0.0, 1.0]), 3: torch.tensor([1.0, 0.0])}

done = syn4seg.relabel(kept, features, target=3, prototypes=prototypes)

print(f"{done.changed} free pixels took a class; class 3 has {int((done.label == 3).sum())} pixels, a {type(done.label).__name__}")
print(f"reason to reject the image: {done.reason or 'none'}")
