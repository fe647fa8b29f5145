"""Passes with structure to search, for tests: an MLP that is whole, small or gone, by two gates."""

KINDS = '''
from vitrewrite.authoring import StructureGates


class Bottleneck(nn.Module):
    """An MLP of a few units."""

    inserted_by = "{name}"
    changes = (0,)

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x).relu())


class Nothing(nn.Module):
    """Zero."""

    inserted_by = "{name}"
    changes = (0,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0


class KindsOfMlp(nn.Module):
    """The MLP, the small one or nothing; the MLP needs both gates open."""

    inserted_by = "{name}"
    changes = (1,)

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        self.gates, self.small = StructureGates(2), Bottleneck(width, hidden)

    @property
    def logits(self) -> nn.Parameter:
        return self.gates.logits

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor,
        w2: torch.Tensor, b2: torch.Tensor,
    ) -> torch.Tensor:
        either = self.gates().cumprod(0)
        return either[1] * y + either[0] * (1 - either[1]) * self.small(x)

    def priced(self) -> torch.Tensor:
        return self.gates.priced().cumprod(0)


@dataclass(frozen=True)
class {cls}(Pass):
    verbs: ClassVar[tuple[str, ...]] = ("replace",)
    attaches: ClassVar[tuple[str, ...]] = ("mlp",)

    state: str = option("search", choices=("search", "whole", "small", "gone"))
    hidden: int = option(4, minimum=1, maximum=64)

    def rewrite(self, mlp: Any) -> None:
        width = mlp.fc2.out_features
        if self.state == "search":
            mlp.become(KindsOfMlp(width, self.hidden), beside=True)
        elif self.state == "small":
            mlp.become(Bottleneck(width, self.hidden), keep=False)
        elif self.state == "gone":
            mlp.become(Nothing(), keep=False)

    def prices(self, mlp: Any, module: Any, *, patches_only: bool = False) -> Any:
        unit = mlp.unit_macs(patches_only=patches_only)
        return [self.hidden * unit, (mlp.units - self.hidden) * unit{more}]

    def found(self, module: Any, opened: Any) -> Any:
        return {{"state": "gone" if not opened[0] else "whole" if opened[1] else "small"}}
'''


def kinds(name: str, cls: str, more: str = "") -> str:
    """The pass; `more` is added to its second price, to make it wrong."""
    return KINDS.format(name=name, cls=cls, more=more)
