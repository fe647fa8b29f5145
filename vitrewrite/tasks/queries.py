"""Label maps for a model that returns masks and their classes, as Mask2Former does.

The loss is that of Cheng et al., CVPR 2022, section 3.3, as transformers has it: each class of an
image is matched to one query, the class by cross-entropy and the mask by binary cross-entropy and
dice at sampled points, with weights 2, 5, 5; the same after every layer of the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import TuneError
from .overlap import valid
from .segmentation import Segmentation

CLASSES, MASKS, AUXILIARY = "class_queries_logits", "masks_queries_logits", "auxiliary_logits"


class QueryTask(Segmentation):
    """The matching loss over all predictions of the decoder; its semantic maps are measured.

    Args:
        output: what the model returns, for the number of classes.
        config: the model's configuration, for the loss's weights and points; by default those of
            the paper.

    Raises:
        TuneError: VR856 if the model returns no auxiliary predictions, VR857 without transformers
            or scipy.
    """

    def __init__(self, output: Mapping[str, Any], config: Any = None) -> None:
        super().__init__(int(output[CLASSES].shape[-1]) - 1)
        if not output.get(AUXILIARY):
            raise TuneError(
                "VR856",
                "the model returns its last prediction only, and the loss supervises all",
                suggestion="build it with output_auxiliary_logits=true",
            )
        self.criterion = _criterion(config, self.classes)

    def loss(
        self, output: Any, labels: torch.Tensor, *, smoothing: float = 0.0, seed: int | None = None
    ) -> torch.Tensor:
        """The weighted sum of all terms of all predictions."""
        own = self.criterion.to(labels.device)
        own.get_num_masks = _masks_of_a_step if seed is None else _masks
        present = [torch.unique(each[valid(each)]) for each in labels]
        masks = [
            (each == found[:, None, None]).float()
            for each, found in zip(labels, present, strict=True)
        ]
        predictions = [_single(each) for each in (output, *output[AUXILIARY])]
        with _drawn_from(seed, labels.device), torch.autocast(labels.device.type, enabled=False):
            terms = own(
                masks_queries_logits=predictions[0][MASKS],
                class_queries_logits=predictions[0][CLASSES],
                mask_labels=masks,
                class_labels=present,
                auxiliary_predictions=predictions[1:],
            )
        weighted = [
            weight * term
            for kind, weight in own.weight_dict.items()
            for name, term in terms.items()
            if name.startswith(kind)
        ]
        return torch.stack(weighted).sum()

    def part(self, output: Any, index: int) -> Any:
        """Masks and classes of one image."""
        first, *others = (
            {key: each[key][index : index + 1] for key in (CLASSES, MASKS)}
            for each in (output, *output[AUXILIARY])
        )
        return {**first, AUXILIARY: others}

    def scores(self, output: Any, size: tuple[int, int]) -> torch.Tensor:
        """The semantic scores."""
        return semantic(output[CLASSES][0], output[MASKS][0], size)


def semantic(classes: torch.Tensor, masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Scores of classes (classes, H, W): those of the queries, each where its mask is.

    Args:
        classes: logits (queries, classes + 1), "no object" last.
        masks: logits (queries, h, w).
        size: H, W.
    """
    upsampled = F.interpolate(masks[None].float(), size, mode="bilinear", align_corners=False)[0]
    shares = classes.float().softmax(-1)[:, :-1]
    return torch.einsum("qc,qhw->chw", shares, upsampled.sigmoid())


def _criterion(config: Any, classes: int) -> Any:
    """transformers' own loss."""
    try:
        from transformers import Mask2FormerConfig
        from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

        if getattr(config, "train_num_points", None) is None:
            made: Any = Mask2FormerConfig
            config = made(num_labels=classes)
        weights = {
            "loss_cross_entropy": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        }
        return Mask2FormerLoss(config, weights)
    except ImportError as error:
        raise TuneError(
            "VR857",
            "the loss of a model with queries needs transformers and scipy",
            suggestion="pip install 'vitrewrite[mask2former]'",
        ) from error


def _single(prediction: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In single precision, whatever the model computed in: the costs of the matching need it."""
    return {key: prediction[key].float() for key in (CLASSES, MASKS)}


def _masks(class_labels: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """How many masks a batch has: what sums over masks are divided by."""
    return torch.tensor(float(max(1, sum(map(len, class_labels)))), device=device)


def _masks_of_a_step(class_labels: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The mean over processes; transformers divides it by their number once too often."""
    count = torch.tensor(float(sum(map(len, class_labels))), device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count /= torch.distributed.get_world_size()
    return count.clamp(min=1)


@contextmanager
def _drawn_from(seed: int | None, device: torch.device) -> Iterator[None]:
    """The global generators start from a seed, and are as they were afterwards."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=device.type):
        torch.manual_seed(seed)
        yield
