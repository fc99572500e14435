"""Names found in a package's source files: read with `ast`, never imported.

The source is an installed folder or a wheel. A name counts as found where Python would find it: in
its module, behind a re-export, in a class or in one of its base classes.
"""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Root = Path | zipfile.Path
Seen = frozenset[tuple[str, str, int]]
"""Where the search has been: it ends a circle of re-exports or of base classes."""


Parts = tuple[str, ...]


@dataclass(frozen=True)
class Module:
    """One source file; `package` is what its relative imports start from."""

    name: str
    package: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def lines_of(self, node: ast.AST | None) -> str:
        """The source of one definition; of the whole module for None."""
        if node is None:
            return self.text
        first: int = getattr(node, "lineno", 1)
        first = min([one.lineno for one in getattr(node, "decorator_list", [])], default=first)
        return "\n".join(self.text.splitlines()[first - 1 : getattr(node, "end_lineno", first)])


@dataclass(frozen=True)
class Definition:
    """Where a name is defined. `node` is None for a whole module."""

    module: Module
    node: ast.AST | None

    @property
    def text(self) -> str:
        return self.module.lines_of(self.node)

    @property
    def place(self) -> str:
        return f"{self.module.name}:{getattr(self.node, 'lineno', 1)}"

    @property
    def parameters(self) -> frozenset[str]:
        """Names that a call may give; none for what is no function."""
        if not isinstance(self.node, Function):
            return frozenset()
        asked = self.node.args
        return frozenset(one.arg for one in (*asked.posonlyargs, *asked.args, *asked.kwonlyargs))


class SourceTree:
    """The modules below `root`, the folder or the wheel that holds the package's folder."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._modules: dict[str, Module | None] = {}

    def module(self, name: str) -> Module | None:
        if name not in self._modules:
            self._modules[name] = self._read(name)
        return self._modules[name]

    def find(self, module: str, path: str) -> Definition | None:
        """What `path` ("Class.method", or "" for the module itself) names; None where it is not."""
        source = self.module(module)
        if source is None:
            return None
        found: Definition | None = Definition(source, None)
        for part in path.split(".") if path else ():
            found = self._member(found, part, frozenset())
            if found is None:
                return None
        return found

    def defining(self, name: str) -> list[str]:
        """Modules with a definition of that name, at whatever depth; it reads every file."""
        wanted = re.compile(rf"^\s*(?:class |(?:async )?def |(?=\w+ *[:=])){name}\b", re.MULTILINE)
        return [
            module_name(parts)
            for parts, file in self._files(self._root, ())
            if wanted.search(file.read_text(encoding="utf-8"))
        ]

    def _files(self, folder: Root, above: Parts) -> Iterator[tuple[Parts, Root]]:
        entries: list[Root] = list(folder.iterdir())  # the checker joins the two kinds to `object`
        for entry in sorted(entries, key=lambda one: one.name):
            if entry.is_dir():
                yield from self._files(entry, (*above, entry.name))
            elif entry.name.endswith(".py"):
                yield (*above, entry.name), entry

    def _read(self, name: str) -> Module | None:
        path = name.replace(".", "/")
        for end, package in ((".py", name.rpartition(".")[0]), ("/__init__.py", name)):
            file = self._root / f"{path}{end}"
            if file.is_file():
                return Module(name, package, file.read_text(encoding="utf-8"))
        return None

    def _member(self, owner: Definition | None, name: str, seen: Seen) -> Definition | None:
        if owner is None:
            return None
        step = (owner.module.name, name, id(owner.node))
        if step in seen:
            return None
        seen |= {step}
        if isinstance(owner.node, ast.ClassDef):
            return self._of_class(owner, owner.node, name, seen)
        if owner.node is None:
            return self._of_module(owner.module, name, seen)
        return None

    def _of_class(
        self, owner: Definition, node: ast.ClassDef, name: str, seen: Seen
    ) -> Definition | None:
        for statement in statements(node.body):
            if name in bound(statement):
                return Definition(owner.module, statement)
        for base in node.bases:
            at = self._expression(owner.module, base, seen)
            if (found := self._member(at, name, seen)) is not None:
                return found
        return None

    def _of_module(self, module: Module, name: str, seen: Seen) -> Definition | None:
        """The last binding counts, as at run time; a submodule is a member of its package."""
        for statement in reversed(list(statements(module.tree.body))):
            if isinstance(statement, ast.ImportFrom | ast.Import):
                if (found := self._imported(module, statement, name, seen)) is not None:
                    return found
            elif name in bound(statement):
                value = getattr(statement, "value", None)
                if isinstance(value, ast.Name | ast.Attribute):
                    return self._expression(module, value, seen)
                return Definition(module, statement)
        inner = self.module(f"{module.name}.{name}") if module.package == module.name else None
        return None if inner is None else Definition(inner, None)

    def _imported(
        self, module: Module, statement: ast.ImportFrom | ast.Import, name: str, seen: Seen
    ) -> Definition | None:
        for alias in statement.names:
            if alias.name != "*" and name != (alias.asname or alias.name):
                continue
            if isinstance(statement, ast.Import):
                source, wanted = self.module(alias.name), ""
            else:
                source = self.module(imported_from(module, statement))
                wanted = name if alias.name == "*" else alias.name
            at = None if source is None else Definition(source, None)
            found = self._member(at, wanted, seen) if wanted else at
            if found is not None:
                return found
        return None

    def _expression(self, module: Module, node: ast.expr, seen: Seen) -> Definition | None:
        """A base class or an alias: `Name`, `module.Name`, `Generic[T]`."""
        if isinstance(node, ast.Subscript):
            return self._expression(module, node.value, seen)
        if isinstance(node, ast.Attribute):
            return self._member(self._expression(module, node.value, seen), node.attr, seen)
        if isinstance(node, ast.Name):
            return self._member(Definition(module, None), node.id, seen)
        return None


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module or class, in branches too, and nothing of what functions hold."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With | ast.For):
            for part in ("body", "handlers", "orelse", "finalbody"):
                for inner in getattr(statement, part, []):
                    handler = isinstance(inner, ast.ExceptHandler)
                    yield from statements(inner.body if handler else [inner])


def bound(statement: ast.stmt) -> set[str]:
    """Names that a statement other than an import gives a meaning."""
    if isinstance(statement, ast.ClassDef | Function):
        return {statement.name}
    targets: list[ast.expr] = getattr(statement, "targets", [])
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return {
        node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)
    }


def module_name(parts: Parts) -> str:
    return ".".join(parts).removesuffix(".py").removesuffix(".__init__")


def imported_from(module: Module, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    parts = module.package.split(".")
    kept = parts[: len(parts) - statement.level + 1]
    return ".".join([*kept, *([statement.module] if statement.module else [])])
