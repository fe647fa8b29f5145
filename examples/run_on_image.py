"""Runs an emitted model on a real image: scikit-learn's sample photographs.

The model is imported from its own folder; vitrewrite and timm are not used.

    python examples/run_on_image.py build/demo
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image


def load_model(folder: Path) -> torch.nn.Module:
    """The model of a folder that `vitrewrite apply` wrote."""
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: torch.nn.Module = module.load(folder / "weights.safetensors")
    return model


def image(name: str, size: int = 224) -> torch.Tensor:
    """A sample photograph as a normalised batch of one, [1, 3, size, size]."""
    pixels = torch.from_numpy(np.array(load_sample_image(name))).permute(2, 0, 1)[None] / 255
    side = min(pixels.shape[-2:])
    square = pixels[..., :side, :side]
    resized = F.interpolate(square, (size, size), mode="bilinear", antialias=True)
    return (resized - 0.5) / 0.5


def main(folder: str) -> None:
    """Prints the five largest classes of two photographs."""
    model = load_model(Path(folder))
    for name in ("china.jpg", "flower.jpg"):
        with torch.no_grad():
            scores = model(image(name)).softmax(-1)[0]
        top = ", ".join(f"{int(i)}: {float(scores[i]):.4f}" for i in scores.topk(5).indices)
        print(f"{name:<12} five largest of {len(scores)} classes  {top}")


if __name__ == "__main__":
    main(sys.argv[1])
