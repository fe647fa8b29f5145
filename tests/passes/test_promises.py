"""Claims of passes, each checked by itself, and those that are none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import vitrewrite as vr
from tests.authored import branch, install
from tests.lowering.models import fill, profile, vit
from vitrewrite import catalog
from vitrewrite.catalog.signatures import KNOWN
from vitrewrite.rewrite.rewritten import Rewritten
from vitrewrite.selection.kinds import KINDS
from vitrewrite.verification.check import Check
from vitrewrite.verification.promises import identities, lowerings, properties
from vitrewrite.verification.reference import Runs

LORA = "insert lora(rank=2) at blocks[*].attn.{q, v}"
AT = "at blocks[0].mlp.fc2"
STAYS = "    def lower(self, site: Any, module: Any) -> bool:\n        return False\n"
WRONG = (
    "    def lower(self, site: Any, module: Any) -> bool:\n"
    "        return site.fold([torch.ones(site.out_features, site.in_features)])\n"
)


def checked(found: Any) -> dict[str, tuple[bool | None, str]]:
    return {c.name: (c.holds, c.note) for c in found if isinstance(c, Check)}


def all_of(*clauses: str) -> Rewritten:
    return vr.apply("\n".join(clauses) + "\n", vit(), profile=profile())


def test_shipped_passes_keep_their_claims() -> None:
    rewritten = all_of(
        LORA,
        "insert sparse() at sensitive(budget=2K, scale=4K)",
        "insert adapter(hidden=2) at blocks[*].mlp.fc1",
        "prepend prompt(count=3, masks=true, segments=4) to blocks[*]",
        "insert merge.bdm() after blocks[0].attn",
    )
    same = checked(identities(Runs(rewritten)))
    assert len(same) == 3
    assert all(holds for holds, _ in same.values())
    exact = checked(lowerings(Runs(rewritten)))
    assert len(exact) == 4
    assert all(holds for holds, _ in exact.values())
    assert all(holds for holds, _ in checked(properties(Runs(rewritten))).values())


def test_identity_is_that_of_the_initialisation() -> None:
    """Also of a model that was trained, whose own branches do something."""
    rewritten = fill(all_of(LORA, "train head"))
    (check,) = identities(Runs(rewritten))
    assert check.holds
    assert check.measured == 0
    assert LORA.split("(")[0] in check.name
    assert float(rewritten.delta()["blocks.0.attn.q.lora.up"].abs().max()) > 0


def test_a_clause_that_changes_the_output_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside one that keeps its claim, and one that hides the change."""
    claim = '("same_output_at_init",)'
    install(
        monkeypatch,
        tmp_path,
        raised=branch("raised", "Raised", "y + 1", claim),
        sunk=branch("sunk", "Sunk", "y - 1", claim),
        absent=branch("absent", "Absent", "y * torch.nan", claim),
    )
    rewritten = all_of(f"insert raised() {AT}", f"insert sunk() {AT}", LORA)
    found = checked(identities(Runs(rewritten)))
    assert [holds for holds, _ in found.values()] == [False, False, True]
    assert f":1: insert raised() {AT}: same output at initialisation" in next(iter(found))
    (check,) = identities(Runs(all_of(f"insert absent() {AT}")))
    assert not check.holds
    assert "fc2" in check.note


VALUES = """
class NumbersModule(nn.Module):
    inserted_by = "{name}"

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(1, 17))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.constant_(self.number, {value})

    def forward(self) -> torch.Tensor:
        return self.number.cumsum(1)


@dataclass(frozen=True)
class Numbers(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("attention",)
    claims: ClassVar[tuple[str, ...]] = ("same_output_at_init",)

    def rewrite(self, attn: Any) -> None:
        attn.bias_keys(attn.shared("numbers", NumbersModule))
"""


@pytest.mark.parametrize("value", [0, 1])
def test_a_clause_that_only_makes_values(
    value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"numbers{value}"
    install(monkeypatch, tmp_path, **{name: VALUES.format(name=name, value=value)})
    found = checked(identities(Runs(all_of(LORA, f"insert {name}() at blocks[*].attn"))))
    assert [holds for holds, _ in found.values()] == [True, value == 0]


def test_lowering_that_does_nothing_or_another_thing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = '("lowers_exactly",)'
    install(
        monkeypatch,
        tmp_path,
        stays=branch("stays", "Stays", "y + y * self.scale", claim, STAYS),
        wrong=branch("wrong", "Wrong", "y + y * self.scale", claim, WRONG),
    )
    rewritten = all_of(LORA, f"insert stays() {AT}", "insert wrong() at blocks[1].mlp.fc1")
    found = list(lowerings(Runs(rewritten)))
    by_pass = {c.name.split("insert ")[1].split("(")[0]: c for c in found}
    assert by_pass["lora"].holds
    assert not by_pass["stays"].holds
    assert by_pass["stays"].measured < 1e-6
    assert by_pass["stays"].note == "lowering leaves 'blocks.0.mlp.fc2_stays' as it is"
    assert not by_pass["wrong"].holds
    assert by_pass["wrong"].measured > 1e-3


def test_what_errors_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def errors(result: str) -> str:
        head = "    def errors(self, module: Any, inputs: Any, outputs: Any) -> dict[str, float]:\n"
        return f"{head}        return {result}\n"

    claim = "('it is small',)"
    install(
        monkeypatch,
        tmp_path,
        small=branch("small", "Small", "y", claim, errors("{'it is small': 0.0}")),
        odd=branch("odd", "Odd", "y", claim, errors("{'it is small': float('nan')}")),
        mute=branch("mute", "Mute", "y", claim, errors("{'it is small': 0.0} if 0 else {}")),
    )
    rewritten = all_of(f"insert small() {AT}", f"insert odd() {AT}", f"insert mute() {AT}")
    small, odd, mute = properties(Runs(rewritten))
    assert (small.holds, small.measured) == (True, 0.0)
    assert (odd.holds, odd.measured) == (False, math.inf)
    assert (mute.holds, mute.note) == (False, "nothing measures it")


def test_a_claim_that_is_not_made_at_a_site() -> None:
    """Shallow prompts evolve: nothing is claimed there, and the plan says why."""
    shallow = "prepend prompt(count=3) to blocks[0]"
    plan = vr.plan(shallow + "\n", vit())
    (clause,) = plan.to_json()["clauses"]
    assert clause["claims"] == ["lowers_exactly"]
    assert list(clause["waived"]["lowers_exactly"]) == ["blocks[0]"]
    assert "not claimed: lowers_exactly (line 1, blocks[0]): what becomes of its" in str(plan)
    assert [*lowerings(Runs(all_of(shallow)))] == []


def test_a_layer_of_two_holders_keeps_its_branch() -> None:
    model = vit()
    model.blocks[1].mlp.fc2 = model.blocks[0].mlp.fc2
    rewritten = vr.apply("insert lora(rank=2) at blocks[0].mlp.{fc1, fc2}\n", model)
    waived = rewritten.report["clauses"][0]["waived"]  # of the layer that is its block's alone none
    assert {claim: list(sites) for claim, sites in waived.items()} == {
        "lowers_exactly": ["blocks[0].mlp.fc2"]
    }
    assert all(c.holds for c in lowerings(Runs(rewritten)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("claims = ('lowers_exacty',)", "claims has 'lowers_exacty'; .*mean 'lowers_exactly'"),
        ("claims = ('it is small',)", "and what errors.. of the pass measures"),
        ("reads = ('grids',)", "reads has 'grids'; known: prefix, grid, size"),
        ("writes = ('tokens',)", "writes has 'tokens'; known: prefix, grid, size, layers"),
        ("attaches = ('linears',)", "attaches has 'linears'; .*did you mean 'linear'"),
        ("verbs = ('insert in',)", "verbs has 'insert in'"),
    ],
)  # fmt: skip
def test_words_that_nothing_knows(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        f"from vitrewrite.authoring import Pass\nclass Mine(Pass):\n    {line}\n"
    )
    with pytest.raises(vr.VitrewriteError, match=rf"mine\.py:3:5: VR240 .*{message}"):
        catalog.Catalog((tmp_path,), ()).signature("mine")


def test_a_claim_to_lower_without_lower(tmp_path: Path) -> None:
    (tmp_path / "mine2.py").write_text(
        "from vitrewrite.authoring import Pass\n"
        "class Mine(Pass):\n    claims = ('lowers_exactly',)\n"
    )
    with pytest.raises(vr.VitrewriteError, match=r"VR240 .*has no lower\(\)"):
        catalog.Catalog((tmp_path,), ()).load("mine2")


def test_every_role_is_a_kind_of_site() -> None:
    assert set(KNOWN["attaches"]) == set(KINDS)
