"""Names of models, known without importing timm."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm

from vitrewrite.catalog import timms
from vitrewrite.catalog.models import ALIASES, BASES, full_name, known_models, refuse_unknown
from vitrewrite.errors import MatchError, VitrewriteError
from vitrewrite.language import parse_spec


def test_the_sources_of_timm_have_the_models_that_it_registers() -> None:
    found = timms._read()
    listed = timm.list_models()
    assert found.models - found.deprecated == set(listed)
    assert sorted(found.models, key=timms._natural) == listed
    assert all(map(timm.is_model, found.deprecated))
    assert found.deprecated == set(timm.models._registry._deprecated_models)


def test_without_timm_the_same_is_known() -> None:
    program = """
import sys
from vitrewrite.catalog.models import known_models
from vitrewrite.catalog.timms import is_timms
found = [name for name, _ in known_models()]
known = [is_timms(n) for n in ("vit_base_patch16_224.mae", "vit_base_patch16_224_in21k", "vit")]
assert "timm" not in sys.modules
print(*map(int, known), *found)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[:3] == ["1", "1", "0"]
    assert done.stdout.split()[3:] == [name for name, _ in known_models()]


def test_what_the_user_registered_counts_where_timm_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "own_vit", lambda: None)
    refuse_unknown("own_vit")


def test_aliases_and_bases_are_names_of_timms() -> None:
    for name in (*ALIASES, *BASES):
        assert timm.is_model(full_name(name))
        refuse_unknown(name)
    with pytest.raises(MatchError, match="VR310"):
        refuse_unknown("hf-hub:timm/vit_tiny_patch16_224")


def test_a_wrong_model_is_told_together_with_other_errors() -> None:
    with pytest.raises(VitrewriteError) as caught:
        parse_spec("model vit_bsae\ninsert lroa() at blocks\n", models=True)
    codes = [error.code for error in caught.value.errors]  # type: ignore[attr-defined]
    assert codes == ["VR310", "VR201"]
    assert "did you mean 'vit_base'?" in str(caught.value)
    parse_spec("model vit_bsae\ntrain head\n")  # the caller may give another
    with pytest.raises(VitrewriteError) as caught:
        parse_spec("stitch vit_bsae, vit_small with snnet()\n", models=True)
    assert "1:8: VR310" in str(caught.value)
