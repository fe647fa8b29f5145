"""Configurations that no model has, and options that a configuration does not take."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import vitrewrite as vr

R50 = "hf:mask2former-r50"
OPTIONS: list[tuple[dict[str, object], str, str]] = [
    ({"image_size": "abc"}, "VR311", "image_size is a number, not 'abc'"),
    ({"image_size": [1, 2, 3]}, "VR311", "image_size is a number of pixels, or height and width"),
    ({"image_size": 0}, "VR311", "image_size is a number of pixels, or height and width"),
    ({"num_labels": -3}, "VR311", "num_labels is a number of classes, at least 1"),
    ({"num_labels": 10**9}, "VR316", "no model has more than 1,000,000"),
]


@pytest.mark.parametrize(("options", "code", "reason"), OPTIONS)
def test_an_option_that_makes_no_sense(options: dict[str, object], code: str, reason: str) -> None:
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.plan("train head\n", R50, **options)
    assert caught.value.code == code
    assert caught.value.message.endswith(f": {reason}")


CONFIGS: list[tuple[str, str, str]] = [
    (json.dumps({"model_type": ["vit"]}), "VR310", "transformers knows no '['vit']'"),
    (json.dumps({"model_type": {"a": 1}}), "VR310", "transformers knows no '{'a': 1}'"),
    (json.dumps({"model_type": "vit", "num_labels": 10**9}), "VR316",
     "no model has more than 1,000,000"),
    ("[" * 100_000 + "]" * 100_000, "VR310",
     "cannot read 'odd/config.json': it is nested too deeply"),
    ("[]", "VR310", "'odd/config.json' holds no configuration"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "code", "reason"), CONFIGS)
def test_a_configuration_that_no_model_has(
    text: str, code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd").mkdir()
    Path("odd/config.json").write_text(text)
    with pytest.raises(vr.VitrewriteError) as caught:
        vr.plan("model hf:./odd\ntrain head\n")
    error = caught.value
    assert (error.code, str(error.span)) == (code, "<text>:1:7")
    assert error.message.endswith(reason)


def test_a_pipe_is_no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd").mkdir()
    os.mkfifo("odd/config.json")
    with pytest.raises(vr.VitrewriteError, match="it is no regular file"):
        vr.plan("model hf:./odd\ntrain head\n")
