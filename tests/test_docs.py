"""The pages of `docs` do what they say: their code is taken out of them and run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vitrewrite as vr
from tests.authored import HEAD, branch
from tests.cli.invoke import invoke
from tests.documentation.blocks import blocks as documented
from tests.documentation.blocks import pages
from tests.documentation.first_hour import hour
from tests.documentation.output import differences
from tests.documentation.running import spec
from tests.documentation.stage import elsewhere
from tests.matrix.architectures import ARCHITECTURES
from tests.matrix.methods import METHODS
from vitrewrite.checking.passes import tiny
from vitrewrite.language.settings import options

PAGE = Path(__file__).parents[1] / "docs" / "writing-a-pass.md"
PAPERS = PAGE.with_name("papers.md")
RECIPES = PAGE.with_name("recipes.md")


def blocks(kind: str, page: Path = PAGE) -> list[str]:
    """The code of a kind in a page, block by block."""
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_of_recipes_has_specs_and_settings() -> None:
    for text in blocks("peft", RECIPES):
        assert not vr.parse(text).warnings
    rows = re.findall(r"^\| (`.*?) \|", RECIPES.read_text().partition("## ")[0], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)(?:\(SITES\))?`", row)}
    assert len(named) > 30
    assert named <= options().keys()


def test_every_spec_of_the_pages_parses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`make docs` runs the rest: commands, with their output, and Python."""
    monkeypatch.chdir(tmp_path)
    found = [block for page in pages() for block in documented(page)]
    specs = [b for b in found if b.kind == "spec" and not elsewhere(b.page, b.text)]
    assert len(specs) >= 15
    judged = [spec(f"{block.page}:{block.line}", block.text) for block in specs]
    assert [verdict for verdict in judged if verdict.wrong] == []
    assert len([block for block in found if block.kind == "commands"]) >= 10


def test_the_first_hour_has_a_dozen_commands() -> None:
    """`make fresh` walks it."""
    lines = [command.line for command in hour()]
    assert len(lines) <= 12
    for start in (
        "pip",
        *(
            f"vitrewrite {name}"
            for name in ("plan", "apply", "tune", "predict", "export", "check", "verify")
        ),
    ):
        assert any(line.startswith(start) for line in lines), start


def test_the_counts_of_the_readme_are_those_of_the_pages() -> None:
    """What `make matrix`, `make papers` and the specs of FASeg have."""
    root = PAGE.parents[1]
    readme = (root / "README.md").read_text()
    assert f"has {len(METHODS)} methods on {len(ARCHITECTURES)} architectures" in readme
    (rows,) = re.findall(r"^(\d+) of \d+ rows have a spec", PAPERS.read_text(), re.MULTILINE)
    assert f"shows {rows} rows" in readme
    assert len([*(root / "specs").glob("faseg_*.peft")]) == 4 + 8
    assert "`faseg_rcda` and eight more" in " ".join(readme.split())


@pytest.mark.parametrize(
    ("shown", "printed", "wrong"),
    [
        ("claim  ok  12 of 3", "claim ok   12 of 3\n", []),
        ("claim  ok  12 of 3", "claim ok   13 of 3\n", ["claim ok 12 of 3"]),
        ("MACs  13.465 G", "MACs  13.4 G", []),
        ("MACs  13.465 G", "MACs  16.4 G", ["MACs 13.465 G"]),
        ("exactly: 8.05e-07", "exactly: 2.1e-07", []),
        ("exactly: 8.05e-07", "exactly: 8.05e-03", ["exactly: 8.05e-07"]),
        ("known: lora, ...", "known: lora, merge", []),
        ("a\nb", "b\na", ["b"]),
    ],
)
def test_what_counts_as_noise(shown: str, printed: str, wrong: list[str]) -> None:
    assert differences(shown, printed) == wrong


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    path = tmp_path / "gate.py"
    path.write_text("\n\n".join(blocks("python")))
    return path


def test_the_pass_of_the_page_is_green(gate: Path) -> None:
    result = invoke("check-pass", gate)
    lines = result.out.splitlines()
    assert result.status == 0, result.out
    assert len(lines) >= 18
    assert all(line.startswith("ok ") for line in lines)
    for what in ("structure", "initialisation", "gradients", "lowered", "printed", "exports"):
        assert any(what in line for line in lines), what


def test_the_specs_of_the_page(gate: Path) -> None:
    """The one that it says is refused, and the one that runs: as it was while g is 0."""
    spec = gate.parent / "mine.peft"
    spec.write_text(blocks("text")[0])
    with pytest.raises(vr.VitrewriteError, match="VR208"):
        vr.parse(spec)
    spec.write_text(blocks("peft")[0])
    rewritten = vr.apply(spec, tiny())
    delta = rewritten.delta()
    assert tuple(delta["blocks.1.gate.down.weight"].shape) == (4, 32)
    assert float(delta["blocks.1.gate.g"].abs().max()) == 0
    assert [v.holds for v in rewritten.claims] == [True]


def test_a_pass_that_breaks_its_promise_is_not_green(tmp_path: Path) -> None:
    """Every line is printed, and those that fail say why."""
    path = tmp_path / "shifted.py"
    path.write_text(HEAD + branch("shifted", "Shifted", "y + 1", '("same_output_at_init",)'))
    result = invoke("check-pass", path, "--json")
    assert result.status == 1
    failed = [c["check"] for c in result.json["checks"] if c["holds"] is False]
    assert not result.json["ok"]
    assert any("same output at initialisation" in name for name in failed)
    assert any("nothing is trained" in name for name in failed)  # nothing uses its parameters


PAIR = """
class PairModule(nn.Module):
    inserted_by = "pair"
    changes = (0,)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.down = nn.Parameter(torch.zeros(4, dim))
        self.up = nn.Parameter(torch.zeros(dim, 4))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.zeros_(self.down)
        nn.init.zeros_(self.up)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return y + torch.relu(y @ self.down.T) @ self.up.T


@dataclass(frozen=True)
class Pair(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("branch",)

    def rewrite(self, branch: Any) -> None:
        branch.wrap(PairModule(branch.dim))
"""


def test_two_factors_that_start_as_zero_are_told(tmp_path: Path) -> None:
    path = tmp_path / "pair.py"
    path.write_text(HEAD + PAIR)
    result = invoke("check-pass", path)
    assert result.status == 1
    (line,) = [line for line in result.out.splitlines() if line.startswith("FAILS")]
    assert "what starts as zero can be trained: 4 stuck (blocks.0.pair.down" in line


DEEP = """
class DeepModule(nn.Module):
    inserted_by = "deep"
    changes = (0,)

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.dim, self.count = dim, count
        self.parts = nn.ModuleList([nn.Linear(dim, dim) for _ in range(count)])
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        for part in self.parts:
            nn.init.normal_(part.weight, std=0.02, generator=generator)
            nn.init.zeros_(part.bias)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            y = part(y)
        return y


@dataclass(frozen=True)
class Deep(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("insert at",)
    attaches: ClassVar[tuple[str, ...]] = ("branch",)
    count: int = option(1, minimum=1, help="layers")

    def rewrite(self, branch: Any) -> None:
        branch.wrap(DeepModule(branch.dim, self.count))
"""


def test_an_option_that_may_make_any_number_of_modules_is_told(tmp_path: Path) -> None:
    path = tmp_path / "deep.py"
    path.write_text(HEAD + DEEP)
    result = invoke("check-pass", path)
    assert result.status == 1
    (line,) = [line for line in result.out.splitlines() if line.startswith("FAILS")]
    assert "values of count work or are refused" in line
    assert "count=1000000: VR420" in line
    assert "takes a maximum" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "VR240"),
        (HEAD + branch("broken", "Broken", "y.missing"), "VR420 .*fails in forward"),
    ],
)
def test_what_cannot_be_tried_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    result = invoke("check-pass", path)
    assert result.status == 1
    assert re.search(message, result.out + result.err)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("sparse", "ok     structure: 2000 trained"),
        ("rcda", "open   structure: refused (VR410 rcda at 'blocks[0].attn'"),
    ],
)
def test_the_file_of_a_shipped_pass(name: str, line: str) -> None:
    """It is that pass; one that takes no site of the tiny model is left open."""
    result = invoke("check-pass", Path(__file__).parents[1] / "passes" / f"{name}.py")
    assert result.status == 0, result.out
    assert line in result.out


def test_the_command_line_of_check_pass() -> None:
    assert invoke("check-pass", "nowhere.py").codes == ["VR201"]
    assert invoke("check-pass", "lora", "rank").codes == ["VR910"]
