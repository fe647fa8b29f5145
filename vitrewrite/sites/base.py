"""What all sites offer to a pass: messages, modules of its own, values shared between sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import fx, nn

from ..anatomy.sites import Place
from ..catalog.own_code import file_of
from ..editing import wiring
from ..editing.clause import ClauseRef
from ..editing.editor import Editor, Insertion, join, relative
from ..editing.fitting import fit, floating
from ..editing.value import Value
from ..errors import RewriteError
from ..layers.packing import fills_bytes
from ..layers.quantised import Quantised
from ..tracing import walk
from ..tracing.leaves import changed_by
from ..tracing.notes import ARITY, HINT
from ..tracing.template import eliminate_dead_code
from ..tracing.unit import Unit
from .context import Context
from .contract import faults
from .from_model import FromModel
from .tying import tied

_M = TypeVar("_M", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class BoundSite(FromModel):
    """A site that a clause acts on."""

    context: Context

    @classmethod
    def bind(cls, context: Context, sites: Sequence[Any]) -> Sequence[BoundSite]:
        """The sites of one kind as a pass gets them: each by itself, unless a kind has it else."""
        return [cls(context, site) for site in sites]  # type: ignore[call-arg]

    @property
    def role(self) -> str:
        """The site in words."""
        raise NotImplementedError

    @property
    def path(self) -> str:
        """The module that the site is."""
        raise NotImplementedError

    @property
    def clause(self) -> ClauseRef:
        """The clause that acts on the site."""
        return self.context.clause

    @property
    def pass_name(self) -> str:
        """The pass that acts on the site."""
        return self.clause.pass_name

    @property
    def like(self) -> torch.Tensor:
        """A tensor of the base at the site: what is put there gets its dtype and device."""
        return self._near

    @property
    def _near(self) -> torch.Tensor:
        """A tensor of the module that the site is, or of the model."""
        root = self.editor.root
        found = floating(root.get_submodule(self.path))
        found = floating(root) if found is None else found
        return torch.empty(0, dtype=self.dtype) if found is None else found

    @property
    def siblings(self) -> tuple[str, ...]:
        """The roles of all sites of the clause, this one included, in order."""
        return self.context.roles

    @property
    def leads(self) -> bool:
        """Whether it is the first site of the clause."""
        return self.role == self.siblings[0]

    # -- messages -------------------------------------------------------------------------------

    def reject(self, option: str, message: str, **extra: Any) -> RewriteError:
        """An error about an option that this site does not allow."""
        return self.clause.error("VR403", f"{message} at '{self.role}'", option, **extra)

    def expect(self, holds: object, option: str, message: str, **extra: Any) -> None:
        """Raises what `reject` makes of the option, unless something holds."""
        if not holds:
            raise self.reject(option, message, **extra)

    def unfit(self, message: str, **extra: Any) -> RewriteError:
        """An error about a site that cannot have the pass, whatever its options."""
        return self.clause.error("VR410", f"{self.pass_name} at '{self.role}': {message}", **extra)

    def gone(self, by: ClauseRef) -> RewriteError:
        """An error about a site that another clause took out, or put something else in place of."""
        return self.clause.without(self.role, by)

    def warn(self, message: str) -> None:
        """Notes what is odd but not wrong, once per clause."""
        text = f"{self.clause.place}: {message}" if self.clause.place else message
        if text not in self.editor.warnings:
            self.editor.warnings.append(text)

    def idle(self, option: str, why: str) -> None:
        """Notes that an option which the clause sets has no effect, for what the site is."""
        if option in self.clause.options:
            self.warn(f"{self.pass_name}.{option} has no effect {why}")

    def waive(self, claim: str, why: str) -> None:
        """Says that a claim of the pass is not made at this site; `plan` tells why."""
        self.editor.waived.setdefault((self.clause.number, claim), {})[self.role] = why

    def state(self, use: str, value: bool, option: str) -> None:
        """Says whether sizes of tokens count, for the model as a whole.

        The last clause of a spec that says it itself holds, else the last that has it by default;
        `plan` tells which.

        Args:
            use: `in_scores`, where log size is added to the scores of keys, or `in_pooling`, where
                means over tokens are weighed by size, and the scores of an attention that pools.
            value: whether they do.
            option: of the pass, that says so.

        Raises:
            RewriteError: VR418 if another clause says the contrary, VR410 later if the model is to
                weigh and how it pools is not known.
        """
        self.context.stream.state(use, value, self.clause, option)

    def waives(self, claim: str) -> bool:
        """Whether it was said that a claim of the pass is not made at this site."""
        return self.role in self.editor.waived.get((self.clause.number, claim), {})

    def at_end(self, act: Callable[[], None]) -> None:
        """Does something once all clauses are through."""
        self.editor.later.append(act)

    # -- modules --------------------------------------------------------------------------------

    def put(
        self,
        module: nn.Module,
        unit: str,
        args: Iterable[fx.Node | None],
        hints: Sequence[str],
        *,
        owner: str | None = None,
        name: str | None = None,
        owners: tuple[str, ...] | None = None,
        changed: tuple[int, ...] = (),
        folds: bool = False,
        around: bool = False,
        given: tuple[Value, ...] = (),
        through: Value | None = None,
    ) -> tuple[fx.Node, ...]:
        """Makes `module` part of the model and calls it.

        Args:
            module: what is put in.
            unit: path of the unit whose graph calls it.
            args: nodes of that graph.
            hints: variable names of the results.
            owner: path of the module that gets the new child; the site's by default.
            name: of the new child; that of the pass by default.
            owners: module paths that name the parts of the module in a delta.
            changed: for each of its first results which argument it is a changed form of.
            folds: whether the weights of the layer that it stands at can take it.
            around: whether it is about a part as a whole, behind all that is at a layer in it.
            given: the values that the last of `args` are, for lowering.
            through: what its input was multiplied with.

        Raises:
            RewriteError: VR421 to VR425 for a module that cannot be copied into what is written.
        """
        self._check(module, changed)
        self._warn_of_padding(module)
        owner = self.path if owner is None else owner
        name = name or self.pass_name.partition(".")[0]
        known = {n: b for n, b in module.named_buffers() if not b.is_meta}
        target, path = self.editor.adopt(unit, owner, name, module, self.like)
        owners = owners or (owner,)
        key = " ".join((join(owner, name), *owners))  # the path may be numbered
        found = Insertion(
            self.pass_name,
            self.clause.number,
            path,
            unit,
            module,
            self,
            owners,
            key,
            folds=folds,
            around=around,
            given=given,
            through=through,
            buffers=known,
        )
        self.editor.insertions.append(found)
        return self.editor.call(unit, target, args, origin=self.clause.origin, hints=tuple(hints))

    def help(
        self, module: nn.Module, unit: str, args: Iterable[fx.Node], name: str, hint: str
    ) -> fx.Node:
        """Calls a module without state that belongs to no pass: one of those that sites have.

        It is there as long as something calls it.
        """
        target, path = self.editor.adopt(unit, self.path, name, module, self.like)
        self.editor.helpers.append(path)
        origin = self.clause.origin
        (node,) = self.editor.call(unit, target, args, origin=origin, hints=(hint,))
        return node

    def _check(self, module: nn.Module, changed: tuple[int, ...]) -> None:
        """The first module of a class must be as `sites.contract` wants it."""
        key = f"{self.pass_name} {type(module).__module__}.{type(module).__qualname__}"
        if key in self.context.checked or isinstance(module, Unit):
            return
        self.context.checked.add(key)
        fault = next(faults(module, self.pass_name, changed), None)
        if fault is not None:
            place = f"{file_of(type(module))}:{fault.line}"
            raise self.clause.error(
                fault.code,
                f"pass {self.pass_name} at '{self.role}': {fault.message}",
                notes=[place],
                suggestion=fault.help,
            )

    def _warn_of_padding(self, module: nn.Module) -> None:
        """Says that what others wrote to read plain bytes does not read those of some matrices."""
        odd = (m for m in module.modules() if isinstance(m, Quantised) and not fills_bytes(m))
        if (first := next(odd, None)) is not None:
            self.warn(
                f"the bits of a {first.rows}x{first.columns} matrix fill no whole number of bytes: "
                "vitrewrite pads the last one, other readers may drop it"
            )

    def refuse_twice(self) -> None:
        """Raises VR402 if an earlier rewrite left the pass in it, not this one."""
        new = {id(insertion.module) for insertion in self.editor.insertions}
        modules = walk.modules(self.editor.root.get_submodule(self.path))
        old = (m for m in modules if id(m) not in new)
        if any(getattr(m, "inserted_by", None) == self.pass_name for m in old):
            raise self.twice

    @property
    def twice(self) -> RewriteError:
        """An error about a site that has the pass already."""
        return self.clause.error(
            "VR402",
            f"'{self.role}' has {self.pass_name} already",
            suggestion="apply it to a model that was not rewritten, or lower that first",
        )

    def shared(self, name: str, make: Callable[[], nn.Module]) -> Value:
        """What a module without inputs yields, made once for all sites of the clause.

        The lowest unit above all of them owns the module and passes the value down, so tied
        parameters are read in one place.
        """
        (value,) = self.tied(name, make, name)
        return value

    def tied(self, name: str, make: Callable[[], nn.Module], *results: str) -> tuple[Value, ...]:
        """What a module without inputs yields, as `shared`, by the names of its results.

        In a delta it is named by the unit that owns it; by itself, if one of another clause, or of
        sites with other options, is.
        """
        return tied(self, name, make, results)

    @property
    def _stem(self) -> str:
        return self.pass_name.replace(".", "_")

    # -- lowering -------------------------------------------------------------------------------

    @property
    def insertion(self) -> Insertion:
        """The module that is lowered."""
        assert self.context.insertion is not None, "only at lowering"
        return self.context.insertion

    def call_of(self, insertion: Insertion) -> fx.Node:
        """The first node that calls an inserted module."""
        return next(node for _, node in self.calls_of(insertion))

    def calls_of(self, insertion: Insertion) -> Iterator[tuple[str, fx.Node]]:
        """The nodes that call an inserted module, each with its unit."""
        return self._calls_at(insertion.path)

    def _calls_at(self, path: str) -> Iterator[tuple[str, fx.Node]]:
        for unit, _ in list(wiring.calls(self.editor, path)):
            target = relative(path, unit)
            nodes: list[fx.Node] = list(self.editor.graph(unit).nodes)
            yield from ((unit, n) for n in nodes if n.op == "call_module" and n.target == target)

    @property
    def inserted_at(self) -> Place:
        """The place of what the module yields."""
        return Place(self.insertion.unit, self.call_of(self.insertion).name)

    def inserted(self, kind: type[_M]) -> list[_M]:
        """The modules of a kind that the same clause put in."""
        same = (i.module for i in self.editor.insertions if i.clause == self.clause.number)
        return [m for m in same if isinstance(m, kind)]

    def sibling(self, kind: type[_M]) -> _M | None:
        """The first of them, if there is one."""
        return next(iter(self.inserted(kind)), None)

    def drop(self) -> None:
        """Takes the module out: what it changed passes as it was."""
        self.bypass(self.insertion.path)
        self.remove(self.insertion)

    def bypass(self, path: str) -> None:
        """What a module at a path changes passes as it was; the module is called no more."""
        changes = changed_by(self.editor.root.get_submodule(path))
        for unit, node in list(self._calls_at(path)):
            self._bypass(unit, node, changes)
            eliminate_dead_code(node.graph)

    def _bypass(self, unit: str, node: fx.Node, changes: Sequence[int | None]) -> None:
        """What read the results of a call reads what they are changed forms of; the call goes."""
        for item in list(node.users) if ARITY.on(node) else [node]:
            index: Any = item.args[1] if item is not node else 0
            original = node.args[changes[index] or 0]
            assert isinstance(original, fx.Node)
            HINT.put(original, HINT.get(original) or HINT.get(item))
            item.replace_all_uses_with(original)
            self.editor.passed(Place(unit, item.name), Place(unit, original.name))
            if item is not node:
                node.graph.erase_node(item)
        node.graph.erase_node(node)

    def swap(self, module: nn.Module, given: Sequence[int] | None = None) -> None:
        """Puts another module of the same outputs in its place.

        Args:
            module: what stands there from now on.
            given: which of the inputs it gets; all of them by default.
        """
        for _, call in self.calls_of(self.insertion) if given is not None else ():
            call.args = tuple(call.args[i] for i in given or ())
        owner, _, name = self.insertion.path.rpartition(".")
        parent = self.editor.root.get_submodule(owner)
        fit(module, parent, self.like, parent._modules[name])
        parent._modules[name] = module
        self.editor.rearranged()

    def reads(self, *names: str) -> None:
        """Names what the module that was put in last reads of the model, for pictures.

        Args:
            names: a role with a tap behind it, such as `blocks[3].attn`, or any other word: one for
                each number that the `weights` of the pass have.
        """
        self.editor.insertions[-1].reads = names

    @property
    def taken_out(self) -> int | None:
        """At lowering, the number of the one stitch that stays; None where all do."""
        return None if self.editor.stitches is None else self.editor.stitches.taken

    def remove(self, insertion: Insertion) -> None:
        """Takes an inserted module that nothing calls any more out of the tree."""
        owner, _, name = insertion.path.rpartition(".")
        del self.editor.root.get_submodule(owner)._modules[name]
        self.editor.counted(insertion.module, -1)

    def at_lowering(self, editor: Editor, insertion: Insertion) -> BoundSite:
        """The same site in a tree that is lowered."""
        context = replace(self.context, editor=editor, insertion=insertion)
        return replace(self, context=context)
