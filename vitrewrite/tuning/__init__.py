"""Training: the engine is Hugging Face accelerate's, the procedure is the pass's.

```python
from vitrewrite.tuning import Settings, tune

rewritten = vr.apply("lora_qv", model, num_classes=10)
tune(rewritten, "digits", Settings(lr=1e-3, epochs=10), out="build/tuned")
rewritten.module, rewritten.report["training"]["accuracy"]
```

| file | what it holds |
|---|---|
| `settings` | the hyperparameters, as `tune { ... }` sets them |
| `procedure` | what a pass may contribute: `Hooks`, `Phase`, `Procedure` |
| `run` | the state that a procedure sees |
| `trainer` | `tune`: phases, from data to a folder |
| `loop` | a phase: steps and evaluations |
| `engine` | processes, devices, precision, sharding |
| `optimisation`, `scales`, `schedules` | parameter groups, rates by part and step, gradients |
| `mixing`, `copies` | mixup and cutmix; the moving average and the best of what is trained |
| `teachers`, `adapting`, `distillation` | who teaches, the images it sees, its share of the loss |
| `checks` | whether settings can be carried out |
| `checkpoints`, `tensors` | all-or-nothing checkpoints in safetensors and JSON |
| `cached` | training without the frozen part: what it yields is on disk |
| `watching` | what inserted modules yield in a step, for losses of it |
| `kept` | the losses of models that decide in training which tokens they keep |
| `active` | how many tokens pass gates |
| `search` | structure to decide about: trained gates, scores, chance; then what is left |
| `spaces`, `projection`, `borders`, `draws` | what there is and costs; coming to a cost |
| `findings` | what a search found, for reports |
| `clusters` | how well features fall into classes |
| `tokens` | what leaves blocks, for procedures that choose by it |
| `folder`, `metrics` | what is written and shown |
"""

from typing import TYPE_CHECKING, Any

from ..language.settings import Settings

if TYPE_CHECKING:
    from .active import activity
    from .clusters import silhouette
    from .kept import FallingKeep, KeptTokens
    from .procedure import Hooks, ParameterGroup, Phase, Procedure
    from .run import Run
    from .tokens import features
    from .trainer import tune
    from .watching import Watched

__all__ = [
    "FallingKeep",
    "Hooks",
    "KeptTokens",
    "ParameterGroup",
    "Phase",
    "Procedure",
    "Run",
    "Settings",
    "Watched",
    "activity",
    "features",
    "silhouette",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Imports torch only when something needs it: the language reads the settings without."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from . import active, clusters, kept, procedure, run, tokens, trainer, watching

    for module in (procedure, run, trainer, tokens, clusters, kept, watching, active):
        if hasattr(module, name):
            return getattr(module, name)
    raise AssertionError(name)
