"""Labelled images for `tune` and `profile`.

`data=` takes

| value | images |
|---|---|
| `digits` | scikit-learn's 1,797 handwritten digits, 8x8 grey; a fifth is measured on |
| `digits:0-4`, `digits:5,7,9` | some of the classes, relabelled from 0 in the order of the digits |
| `FOLDER` | a subfolder per class, below `train/` and `val/` as ImageNet, or without them |
| `FOLDER` | `images/` and `annotations/` with a label map for each image: see `scenes` |
| `ade20k:FOLDER` | the same, where 0 in a map is no class and the classes start at 1 |
| `cityscapes:FOLDER` | `leftImg8bit/` and `gtFine/`; the prefix may be left out |
| `timm:NAME@FOLDER` | `timm.data.create_dataset(NAME, FOLDER)`, such as `timm:torch/cifar10@data` |
| `torchvision:NAME@FOLDER` | `torchvision.datasets.NAME(FOLDER)`, such as `torchvision:SVHN@data` |
| `hf:FOLDER` | what `save_to_disk` of the library datasets wrote |

Behind a `?` stands which of them, joined by `&` and done in this order:

| option | images |
|---|---|
| `images=1000` | so many of those to train on |
| `val=0.2` | the share of each class of these that is measured on, not the source's own part |
| `fold=0&folds=5` | one of five parts of each class is measured on |
| `shots=4` | so many of each class are trained on, of what is left |
| `draw=1` | another draw of all of this |

What is measured on is never chosen in silence: a source without a part for it needs `val` or
`fold`. What is drawn does not depend on the seed of a run, so that runs with different seeds are
measured on the same images.

```python
data = open_data("digits:0-4", Preprocessing.of(rewritten.base))
data.classes                                  # ("0", "1", "2", "3", "4")
for images, labels in batches(data.train, 64, limit=800):
    ...                                       # (64, C, H, W) and (64,)
```
"""

from .batch import Batch
from .images import Data, Images
from .loading import batches, evaluation_batches, training_batches
from .preprocessing import Preprocessing
from .sources import open_data

__all__ = [
    "Batch",
    "Data",
    "Images",
    "Preprocessing",
    "batches",
    "evaluation_batches",
    "open_data",
    "training_batches",
]
