"""What a person reads after a mistake: the whole text, where they are, with a way on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .invoke import invoke

TRAIN = "model tiny.py:build\ntrain {}\n"
MODEL = "model {}\ntrain head\n"

# The command, and everything that it says on stderr.
CASES: dict[str, tuple[list[str], str]] = {
    "a list without brackets": (
        ["plan", "lora.peft", "img_size=1024,2048"],
        """<command line>:1:10: VR204 img_size cannot be '1024,2048'
    img_size=1024,2048
             ^^^^^^^^^
  help: a list is written in brackets, without spaces: img_size=[1024,2048]""",
    ),
    "a list of Python": (
        ["sites", "tiny.py:build", "img_size=(64, 96)"],
        """<command line>:1:10: VR204 img_size cannot be '(64, 96)'
    img_size=(64, 96)
             ^^^^^^^^
  help: a list is written in brackets, without spaces: img_size=[64,96]""",
    ),
    "a list of an option": (
        ["check", "prepend prompt() to blocks\n", "prompt.prune_tokens=10,20"],
        """<command line>:1:21: VR204 prompt.prune_tokens cannot be '10,20'
    prompt.prune_tokens=10,20
                        ^^^^^
  help: a list is written in brackets, without spaces: prompt.prune_tokens=[10,20]""",
    ),
    "sides with a cross": (
        ["plan", "lora.peft", "img_size=64x96"],
        """<command line>:1:10: VR204 img_size cannot be '64x96'
    img_size=64x96
             ^^^^^
  help: a list is written in brackets, without spaces: img_size=[64,96]""",
    ),
    "a list in two arguments": (
        ["plan", "lora.peft", "img_size=[64,", "96]"],
        """<command line>:1:1: VR219 '96]' is no override
    96]
    ^^^
  help: a list is one argument: write it without spaces, such as img_size=[64,96]""",
    ),
    "a list in a spec": (
        ["plan", MODEL.format("tiny.py:build(img_size=64, 96)")],
        """<text>:1:34: VR115 options are written name=value
    model tiny.py:build(img_size=64, 96)
                                     ^^
  help: a list is written in brackets: img_size=[64, 96]""",
    ),
    "a tuple in a spec": (
        ["plan", MODEL.format("tiny.py:build(img_size=(64, 96))")],
        """<text>:1:33: VR112 unexpected ','
    model tiny.py:build(img_size=(64, 96))
                                    ^
  note: expected ')'
  help: a list is written in brackets: img_size=[64, 96]""",
    ),
    "a bound that is not allowed itself": (
        ["check", "train sensitive(budget=1, alpha=0)\n"],
        """<text>:1:33: VR203 sensitive.alpha = 0 is out of range: must be above 0
    train sensitive(budget=1, alpha=0)
                                    ^""",
    ),
    "two bounds": (
        ["check", "lora.peft", "lora.dropout=1"],
        """<command line>:1:14: VR203 lora.dropout = 1 is out of range: \
must be at least 0 and below 1
    lora.dropout=1
                 ^""",
    ),
    "a bound that is allowed": (
        ["check", "lora.peft", "tune.lr=-1"],
        """<command line>:1:9: VR203 tune.lr = -1 is out of range: must be at least 0
    tune.lr=-1
            ^^
  help: the nearest valid value is 0""",
    ),
    "the name of a model": (
        ["plan", MODEL.format("vit_bsae")],
        """<text>:1:7: VR310 no model named 'vit_bsae'
    model vit_bsae
          ^^^^^^^^
  help: did you mean 'vit_base'?""",
    ),
    "a model in capitals": (
        ["plan", "lora.peft", "model=VIT_BASE"],
        """<command line>:1:7: VR310 no model named 'VIT_BASE'
    model VIT_BASE
          ^^^^^^^^
  help: did you mean 'vit_base'?""",
    ),
    "an argument of a model": (
        ["plan", MODEL.format("tiny.py:build(num_heads=2, depht=3)")],
        """<text>:1:34: VR311 'tiny.py:build' cannot be built with num_heads=2, depht=3: \
VisionTransformer.__init__() got an unexpected keyword argument 'depht'
    model tiny.py:build(num_heads=2, depht=3)
                                     ^^^^^
  help: did you mean 'depth'?""",
    ),
    "an argument on the command line": (
        ["plan", "lora.peft", "num_heads=0"],
        """<command line>:1:11: VR311 'tiny.py:build' cannot be built with num_heads=0: \
integer modulo by zero
    num_heads=0
              ^""",
    ),
    "an argument beyond all bounds": (
        ["sites", "tiny.py:build", "depth=1000000000"],
        """<command line>:1:7: VR316 'tiny.py:build' cannot be built with depth=1000000000: \
no model has more than 2,000
    depth=1000000000
          ^^^^^^^^^^""",
    ),
    "rows of a weight": (
        ["plan", TRAIN.format("blocks[0].attn.q")],
        """<text>:2:1: VR408 'blocks[0].attn.q' is some rows of blocks.0.attn.qkv.weight, \
trained and counted only as a whole
    train blocks[0].attn.q
    ^^^^^^^^^^^^^^^^^^^^^^""",
    ),
    "rows in a claim": (
        ["plan", TRAIN.format("head") + "require params < 9M excluding blocks[0].attn.q\n"],
        """<text>:3:1: VR408 'blocks[0].attn.q' is some rows of blocks.0.attn.qkv.weight, \
trained and counted only as a whole
    require params < 9M excluding blocks[0].attn.q
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^""",
    ),
    "entries without a budget": (
        ["plan", TRAIN.format("every entries in blocks[0]")],
        """<text>:2:13: VR302 'every entries in blocks[0]' matches nothing in VisionTransformer
    train every entries in blocks[0]
                ^^^^^^^^^^^^^^^^^^^^
  note: a model has no entries by itself: they are what a budget buys
  help: write 'sensitive(budget=0.4M)' to choose some""",
    ),
    "a decoder in a block": (
        ["plan", TRAIN.format("every decoder in blocks[0]")],
        """<text>:2:13: VR302 'every decoder in blocks[0]' matches nothing in VisionTransformer
    train every decoder in blocks[0]
                ^^^^^^^^^^^^^^^^^^^^
  note: VisionTransformer has no decoder
  help: write 'optional' before it if that is fine""",
    ),
    "a linear layer in a convolution": (
        ["plan", TRAIN.format("every linear in patch_embed.proj")],
        """<text>:2:13: VR302 'every linear in patch_embed.proj' matches nothing \
in VisionTransformer
    train every linear in patch_embed.proj
                ^^^^^^^^^^^^^^^^^^^^^^^^^^
  note: 'patch_embed.proj' is a Conv2d
  note: its linear layers are in: blocks, head
  help: write 'every linear in blocks'""",
    ),
    "a block in the head": (
        ["plan", TRAIN.format("every block in head")],
        """<text>:2:13: VR302 'every block in head' matches nothing in VisionTransformer
    train every block in head
                ^^^^^^^^^^^^^
  note: its blocks are in: blocks
  help: write 'every block'""",
    ),
    "a type of model that is a list": (
        ["sites", "hf:./listed"],
        """<command line>:1:7: VR310 no model 'hf:./listed': transformers knows no '['vit']'
    model hf:./listed
          ^^^^^^^^^^^""",
    ),
    "a configuration that is nested deeply": (
        ["sites", "hf:./folder"],
        """<command line>:1:7: VR310 no model 'hf:./folder': cannot read 'folder/config.json': \
it is nested too deeply
    model hf:./folder
          ^^^^^^^^^^^""",
    ),
    "a model that does not say its size": (
        ["sites", "silent.py:build"],
        """<command line>:1:7: VR601 a Linear does not say what its input is
    model silent.py:build
          ^^^^^^^^^^^^^^^
  help: give its input, such as input=1x3x224x224""",
    ),
    "a part that is selected twice": (
        ["plan", TRAIN.format("blocks[0] + blocks")],
        """<text>:2:19: VR303 'blocks[0]' is selected twice
    train blocks[0] + blocks
                      ^^^^^^
  help: write 'blocks[0] + (blocks - blocks[0])'""",
    ),
    "a part that is wholly there": (
        ["plan", TRAIN.format("blocks + blocks[0]")],
        """<text>:2:16: VR303 'blocks[0]' is selected twice
    train blocks + blocks[0]
                   ^^^^^^^^^
  help: leave out 'blocks[0]'""",
    ),
    "a NUL in a name": (
        ["apply", "lora.peft", "--out", "a\0b"],
        "VR737 'a\N{REPLACEMENT CHARACTER}b' cannot be the name of a file: it holds a NUL",
    ),
    "a NUL in a folder": (
        ["lower", "a\0b", "--out", "x"],
        "VR737 'a\N{REPLACEMENT CHARACTER}b' cannot be the name of a file: it holds a NUL",
    ),
    "a pipe of weights": (
        ["apply", "lora.peft", "weights=pipe", "--out", "x"],
        "VR711 cannot read weights 'pipe': it is no regular file",
    ),
    "deeply nested JSON": (
        ["diff", "deep.json", "lora.peft"],
        "VR703 'deep.json' is no report that vitrewrite wrote, or was changed since",
    ),
    "deeply nested report": (
        ["show", "sensitivity", "folder"],
        """VR703 'folder' is no folder that vitrewrite wrote, or was changed since
  note: lock.json: no such file or directory""",
    ),
}  # fmt: skip
SILENT = "from torch import nn\n\n\ndef build():\n    return nn.Linear(3, 3)\n"


@pytest.fixture
def odd(here: Path) -> Path:
    """The current folder, with files that no command should hang or break on."""
    (here / "silent.py").write_text(SILENT)
    os.mkfifo(here / "pipe")
    (here / "folder").mkdir()
    deep = "[" * 100_000 + "]" * 100_000
    (here / "listed").mkdir()
    (here / "listed" / "config.json").write_text('{"model_type": ["vit"]}')
    for name in ("deep.json", "folder/report.json", "folder/config.json"):
        (here / name).write_text(deep)
    return here


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_the_whole_message(case: str) -> None:
    command, text = CASES[case]
    result = invoke(*command)
    assert result.status == 1
    assert result.err == f"{text}\n"


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("PLAN", "plan"), ("plam", "plan"), ("show sensitvity", "sensitivity"), ("Show", "show")],
)
def test_an_unknown_command_gets_the_nearest(wrong: str, meant: str) -> None:
    result = invoke(*wrong.split())
    assert result.status == 2
    *_, last = wrong.split()
    said = f"Error: No such command '{last}'. Did you mean '{meant}'?"
    assert result.err.splitlines()[-1] == said


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        (["explain", "LORA"], "lora"),
        (["plan", "LORA_QV"], "lora_qv"),
        (["check", "insert Lora() at head\n"], "lora"),
        (["check", "insert lora(Rank=3) at head\n"], "rank"),
        (["check", "lora.peft", "RANK=3"], "rank"),
        (["check", "lora.peft", "Wieghts=x"], "weights"),
        (["check", "insert lora(convention=SPT) at head\n"], "spt"),
        (["plan", TRAIN.format("Blocks")], "blocks"),
        (["plan", TRAIN.format("every LINEAR in blocks")], "linear"),
        (["plan", TRAIN.format("blocks where DIM > 3")], "dim"),
        (["check", "train Sensitive(budget=1)\n"], "sensitive"),
        (["check", "train head\nrequire PARAMS < 3\n"], "params"),
        (["check", "Train head\n"], "train"),
    ],
)
def test_case_does_not_keep_a_name_from_being_found(
    here: Path, command: list[str], meant: str
) -> None:
    assert here.is_dir()
    assert f"help: did you mean '{meant}'?" in invoke(*command).err


def test_a_name_that_is_no_utf8_is_shown(here: Path) -> None:
    name = os.fsdecode(b"lora\xff.peft")
    (here / name).write_text("train hed\nfreez head\n")
    result = invoke("check", name)
    assert result.status == 1
    assert "lora\N{REPLACEMENT CHARACTER}.peft:2:1: VR111 no verb 'freez'" in result.err
