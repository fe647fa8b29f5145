"""Methods beside a frozen model: two gloo processes, DDP or FSDP2, end where one process ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

import vitrewrite as vr
from vitrewrite.tuning import tune

from .beside_on_two import SETTINGS, SPECS
from .conftest import TINY
from .test_distributed import ROOT, TORCHRUN, deltas, launch

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("distributed")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the scenarios ran on two processes, and their like on one."""
    base = tmp_path_factory.mktemp("beside")
    (base / "tiny.py").write_text(TINY)
    launch(*TORCHRUN, str(ROOT / "tests" / "tuning" / "beside_on_two.py"), folder=base)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        alone = SETTINGS.changed({"accumulate": 1})
        for name, spec in SPECS.items():
            vr.save(vr.apply(spec), f"{name}.safetensors")
            tune(vr.apply(spec), "digits:0-3", alone, out=name)
    return base


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", sorted(SPECS))
def test_two_end_where_one_ends(name: str, how: str, folder: Path) -> None:
    one, two = deltas(folder / name, folder / f"{name}-{how}")
    start = load_file(folder / f"{name}.safetensors")
    assert one.keys() == two.keys() == start.keys()
    apart = max(float((one[key] - two[key]).abs().max()) for key in one)
    moved = {key: float((one[key] - start[key]).abs().max()) for key in one}
    assert apart <= 2e-6
    assert max(moved.values()) > 1e-3
    # A bias that all keys of a query share changes no weight on them.
    assert all("attn_k.up.bias" in key for key, by in moved.items() if not by)
