"""Labelled images for `tune` and `profile`.

`data=` takes

| value | images |
|---|---|
| `digits` | scikit-learn's 1,797 handwritten digits, 8x8 grey |
| `digits:0-4`, `digits:5,7,9` | some of the classes, relabelled from 0 in the order of the digits |
| `FOLDER` | a subfolder per class, below `train/` and `val/`, or split by us |
| `FOLDER` | `images/` and `annotations/` with a label map for each image: see `scenes` |
| `ade20k:FOLDER` | the same, where 0 in a map is no class and the classes start at 1 |
| `timm:NAME@FOLDER` | `timm.data.create_dataset(NAME, FOLDER)`, such as `timm:torch/cifar10@data` |

Where there is no validation split, a fifth of each class is held out. Which fifth does not depend
on the seed of a run, so that runs with different seeds are measured on the same images.

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
