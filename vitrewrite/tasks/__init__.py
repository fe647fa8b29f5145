"""What is learnt from data: the loss, and the figures that an evaluation counts.

| task | chosen where | loss | judged by |
|---|---|---|---|
| `Classification` | each image has a label | cross-entropy | accuracy |
| `Dense` | images have label maps, the model returns scores per pixel | cross-entropy | mean IoU |
| `Queries` | images have label maps, the model returns masks with classes | matching | mean IoU |

Training and measuring know a task by this interface alone, and no model by its class.
"""

from .choice import task_for
from .classification import Classification, logits
from .dense import Dense
from .queries import QueryTask
from .task import Task

__all__ = ["Classification", "Dense", "QueryTask", "Task", "logits", "task_for"]
