"""What `explain` says of things that are no verb, pass or code."""

from __future__ import annotations

TOPICS = {
    "selectors": """Selectors say which places of a model a clause is about.
'vitrewrite sites MODEL' lists them.

    blocks[*]  blocks[5]  blocks[0:6]  blocks[-2:]  blocks[1, 3]    by number, from 0
    blocks[*].attn.{q, v}  blocks[*].mlp.fc1  blocks[*].attn        inside of them
    stages[2].blocks[*]                                             in models with stages
    head  norm  patch_embed  cls_token  pos_embed                   outside of them
    every linear in blocks  every norm  every conv                  all of a kind
    module("blocks.*.attn.qkv")                                     by the model's own names
    A + B   A - B   A & B                                           together, without, in both
    blocks[*].attn.q where dim >= 384                               by a fact: dim, index, stage
    sensitive(budget=0.4M, samples=800)                             by measurements
    small.blocks[*]  every base.blocks[*]                           of several models, stitched

A selector that matches nothing is an error unless it says 'optional': 'train optional head'.""",
    "overrides": """Overrides are KEY=VALUE on a command line or arguments of vitrewrite.parse.

    rank=4                     a param of the spec
    lora.rank=4                an option of a pass; lora.rank=[4,8,0,8] has one value per site
    tune.lr=1e-3               a setting of training; 'explain tune' lists them
    model=vit_base             another model: of timm, an alias, hf:NAME, or FILE.py:CALLABLE
    num_classes=10             an argument of its constructor; model.NAME=VALUE for any
    input=1x3x224x224          what the model is called with
    weights=  data=  seed=0  device=cuda  delta=FILE

Numbers take k or K, M, G and %: 8k, 0.31M, 17.6G, 1%. Lists have no spaces. Words need no quotes.
An unknown key is an error that lists those that are known.""",
    "data": """data=DATA names images, for 'tune', 'profile', 'bench', 'show' and 'sensitive(...)'.

    digits  digits:0-4                   scikit-learn's, or some classes of them
    FOLDER                               a subfolder per class: train/cat/1.jpg, or cat/1.jpg
    FOLDER                               for segmentation, images/training/a.jpg and
                                         annotations/training/a.png
    timm:NAME@FOLDER                     a data set of timm
    torchvision:NAME@FOLDER              one of torchvision
    hf:FOLDER                            one that the library datasets saved

Behind a '?' stand options, joined by '&': val=0.2 holds out a fifth of each class to measure on;
images=1000, shots=4, fold=0&folds=5 and draw=1 choose.""",
    "weights": """weights=WHICH says what the model starts from.

    weights=random       by default, from seed=0: plans and reports say so
    weights=pretrained   timm's or Hugging Face's, from their hub or its cache
    weights=FILE         safetensors; .pth, .pt, .bin and .ckpt, read as data, never code; .npz
    weights=FOLDER       of Hugging Face, in one file or several

Prefixes, other names, another grid, other channels and another head are adapted as timm does;
'plan' says what will be done before 'apply' does it.""",
    "optional": "optional SELECTOR: the clause is about nothing where the selector matches none, "
    "such as 'train optional head'; without the word that is an error.",
    "numbers": "Numbers take k or K, M, G and %: 8k is 8,000, 0.31M is 310,000, 1% is 0.01. They "
    "are exact, so that a claim such as 'require macs == 17.563828224G' can be.",
}  # fmt: skip
TOPICS |= {
    "at": "insert P at SITES: what the pass makes changes what the sites do. 'before' and 'after' "
    "put it in front of or behind them.",
    "where": "SELECTOR where CONDITION: those of its sites for which a fact holds, such as "
    "'blocks[*] where index >= 6 and not index == 8'.",
    "every": "every KIND in SELECTOR: all sites of a kind there, such as 'every linear in blocks'; "
    "kinds are linear, norm, conv, attention, mlp, branch and block.",
    "excluding": "require CLAIM excluding SITES: leaves parts out of params, trainable and MACs, "
    "such as 'require trainable <= 0.31M excluding head'.",
}
TOPICS |= {"before": TOPICS["at"], "after": TOPICS["at"]}
SINGULAR = {
    "selector": "selectors",
    "override": "overrides",
    "weight": "weights",
    "number": "numbers",
}
