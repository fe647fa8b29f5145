"""Deltas in the words of PEFT, and back: tensors and settings, no files.

PEFT knows whole layers by name. `layers` says what a rewrite does to each layer, `adapters` writes
that as the tensors of PEFT and reads it back, `saved` does the same for trained parameters of the
model itself, and `settings` for what stands in `adapter_config.json`.
"""

from .adapters import PeftAdapter, said
from .reading import read

__all__ = ["PeftAdapter", "read", "said"]
