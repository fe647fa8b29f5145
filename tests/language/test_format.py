"""The formatter, by example; its properties are in `test_properties`."""

from __future__ import annotations

import pytest

from vitrewrite.errors import VitrewriteError
from vitrewrite.language import format_text

MESSY = """

#  first
model   vit( num_classes = 10,a=[ 1,-2 ] )#trailing
param rank :int=8 in 1 .. 64
param mode : str=a in { a,b }


# one
let x=- (rank+ 1)*2//-3
insert lora( rank=rank ,
  scale= 1.0   # inside

  # alone
      ) at blocks [ * ].attn . { q,v }
\ttrain head+( norm )-every linear in  blocks[ 0 : x*2 :-1 ]  where dim>=384 and not(a or b)
freeze module( "a.*" )&sensitive ( budget = 0.4M )
require macs within 1 % of 13.4G
"""
CLEAN = """\
#  first
model vit(num_classes=10, a=[1, -2])  #trailing
param rank: int = 8 in 1..64
param mode: str = a in {a, b}

# one
let x = -(rank + 1) * 2 // -3
insert lora(rank=rank,
    scale=1.0  # inside
    # alone
) at blocks[*].attn.{q, v}
train head + (norm) - every linear in blocks[0:x * 2:-1] where dim >= 384 and not (a or b)
freeze module("a.*") & sensitive(budget=0.4M)
require macs within 1% of 13.4G
"""


def test_layout() -> None:
    assert format_text(MESSY.replace("1 %", "1%").replace("blocks [", "blocks[")) == CLEAN
    assert format_text(CLEAN) == CLEAN


def test_bases_have_no_blanks_around_their_sign() -> None:
    messy = "stitch  small = vit_small,base=hf:a/b-1.5 (n = 3) ,  x.py:f with snnet( kernel=2 )\n"
    clean = "stitch small=vit_small, base=hf:a/b-1.5(n=3), x.py:f with snnet(kernel=2)\n"
    assert format_text(messy) == clean == format_text(clean)


def test_settings() -> None:
    assert format_text("tune {lr=1e-3,  x=[1]}") == "tune { lr = 1e-3, x = [1] }\n"
    assert format_text("tune{\nlr=1e-3\n}") == "tune {\n    lr = 1e-3\n}\n"
    assert format_text("tune { }") == "tune {}\n"
    loose = "tune {lr( blocks[0 : 2].attn . {q,v}+head )=.1}".replace("=.", "=0.")
    assert format_text(loose) == "tune { lr(blocks[0:2].attn.{q, v} + head) = 0.1 }\n"


def test_empty_texts() -> None:
    assert format_text("") == ""
    assert format_text("\n \n\t\n") == ""
    assert format_text("  # note  ") == "# note\n"


def test_what_is_malformed_is_not_formatted() -> None:
    with pytest.raises(VitrewriteError, match="VR108"):
        format_text("train (a\n")
