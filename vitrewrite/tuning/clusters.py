"""How well features fall into classes, by scikit-learn: for procedures that choose by it."""

from __future__ import annotations

import torch


def silhouette(
    features: torch.Tensor, labels: torch.Tensor, perplexity: float | None = None
) -> float:
    """The silhouette coefficient of features under the classes of their labels, in -1..1.

    Rousseeuw, "Silhouettes", 1987: the mean over samples, Euclidean.

    Args:
        features: [samples, channels].
        labels: [samples].
        perplexity: of t-SNE to two dimensions, each scaled to [0, 1], in which the coefficient is
            taken; of the features as they are by default.
    """
    from sklearn.metrics import silhouette_score

    points = features.double().numpy()
    if perplexity is not None:
        from sklearn.manifold import TSNE

        tsne = TSNE(perplexity=perplexity, init="pca", random_state=0)
        points = tsne.fit_transform(features.numpy())
        points = points - points.min(0)
        points = points / points.max(0).clip(min=1e-12)  # what does not vary stays at zero
    return float(silhouette_score(points, labels.numpy()))
