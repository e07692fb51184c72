"""What our source does with a library's API, read from the source and held against the API.

Nothing is listed by hand. Every value that comes from the library is followed through the
syntax tree: from the module, from parameters annotated with its classes, from what its
methods say they return. Each attribute must exist, each enum have the member, each property
that is set be one that can be, and each call fit a signature.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

PLAIN = {"int", "float", "bool", "str", "bytes", "None", "object", "list", "tuple", "dict"}
PLAIN |= {"List", "Tuple", "Dims", "SupportsInt", "capsule", "numpy.ndarray", "Sequence"}

LOST = "it cannot be followed"


@dataclass(frozen=True)
class Value:
    """Something of the library: the module, a class, an instance of one, or a method."""

    kind: str
    of: Any
    name: str = ""


@dataclass(frozen=True)
class Signature:
    """One overload, as the binding's docstring gives it."""

    names: tuple[str, ...]
    """Parameters without `self`."""
    required: int
    returns: str

    def takes(self, call: ast.Call) -> bool:
        """Whether a call fits."""
        keywords = [x.arg for x in call.keywords]
        if not set(keywords) <= set(self.names):
            return False
        if any(isinstance(x, ast.Starred) for x in call.args):
            return len(call.args) - 1 + len(keywords) <= len(self.names)
        given = len(call.args) + len(keywords)
        return self.required <= given <= len(self.names)


@dataclass
class Uses:
    """What was followed, and what is wrong with it."""

    api: ModuleType
    module: str = "trt"
    """The name that stands for the library in the source."""
    found: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    _here: dict[str, Value] = field(default_factory=dict)

    def read(self, source: str) -> None:
        """Follow every function and class of a file."""
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                self._class(node)
            elif isinstance(node, ast.FunctionDef):
                self._function(node, {})

    def _class(self, node: ast.ClassDef) -> None:
        methods = [x for x in node.body if isinstance(x, ast.FunctionDef)]
        methods.sort(key=lambda x: x.name != "__init__")  # what `self` holds comes first
        held: dict[str, Value] = {}
        for method in methods:
            self._function(method, held)
            held = {k: v for k, v in self._here.items() if k.startswith("self.")}

    def _function(self, node: ast.FunctionDef, known: dict[str, Value]) -> None:
        self._here = dict(known)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            text = ast.unparse(argument.annotation) if argument.annotation else ""
            if text.startswith(f"{self.module}."):
                self._here[argument.arg] = Value("instance", self._named(text, node))
            elif argument.arg == self.module:
                self._here[argument.arg] = Value("module", self.api)
        for statement in node.body:
            self._walk(statement)

    def _named(self, text: str, node: ast.AST) -> Any:
        name = text.rpartition(".")[2]
        self.found.add(name)
        if not hasattr(self.api, name):
            self._say(node, f"there is no {name}")
        return getattr(self.api, name, None)

    def _walk(self, node: ast.AST) -> Value | None:
        """Follow an expression or statement; the value, if it is one of the library's."""
        match node:
            case ast.Import(names=[ast.alias(asname=self.module)]):
                self._here[self.module] = Value("module", self.api)
            case ast.Assign(targets=[target], value=value):
                self._bind(target, value)
            case ast.AnnAssign(target=target, annotation=kind, value=ast.expr() as value):
                self._annotated(target, kind, value)
            case ast.Name(id=name):
                return self._here.get(name)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Call():
                return self._call(node)
            case _:
                for child in ast.iter_child_nodes(node):
                    self._walk(child)
        return None

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for a, b in zip(target.elts, value.elts, strict=True):
                self._bind(a, b)
            return
        found = self._walk(value)
        if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("library"):
            found = Value("module", self.api)
        if isinstance(target, ast.Attribute) and ast.unparse(target.value) != "self":
            self._attribute(target)
        name = ast.unparse(target)
        self._here.pop(name, None)
        if found is not None:
            self._here[name] = found

    def _annotated(self, target: ast.expr, annotation: ast.expr, value: ast.expr) -> None:
        """What a binding does not say of its result, the source may."""
        before = len(self.wrong)
        self._bind(target, value)
        text = ast.unparse(annotation)
        if text.startswith(f"{self.module}."):
            self.wrong[before:] = [x for x in self.wrong[before:] if not x.endswith(LOST)]
            found = Value("instance", self._named(text, target))
            self._here[ast.unparse(target)] = found

    def _attribute(self, node: ast.Attribute) -> Value | None:
        whole = ast.unparse(node)
        if whole in self._here:
            return self._here[whole]
        of = self._walk(node.value)
        if of is None or of.of is None or of.kind == "plain":
            return None
        return self._member(node, of)

    def _member(self, node: ast.Attribute, of: Value) -> Value | None:
        holder = "" if of.kind == "module" else f"{of.of.__name__}."
        self.found.add(holder + node.attr)
        if not hasattr(of.of, node.attr):
            self._say(node, f"there is no {holder}{node.attr}")
            return None
        member = getattr(of.of, node.attr)
        if isinstance(node.ctx, ast.Store) and getattr(member, "fset", None) is None:
            self._say(node, f"{holder}{node.attr} cannot be set")
        if of.kind == "module":
            return Value("class" if isinstance(member, type) else "plain", member, node.attr)
        if of.kind == "class":  # a member of an enum
            return Value("plain", member)
        if isinstance(member, property):
            return self._result(node, holder + node.attr, signatures(member.fget))
        return Value("method", member, holder + node.attr)

    def _call(self, node: ast.Call) -> Value | None:
        for part in (*node.args, *(x.value for x in node.keywords)):
            self._walk(part)
        called = self._walk(node.func)
        if called is None or called.kind not in ("class", "method"):
            return None
        known = signatures(called.of.__init__ if called.kind == "class" else called.of)
        name = called.name or called.of.__name__
        fitting = [x for x in known if x.takes(node)]
        if not fitting:
            self._say(node, f"no {name} takes {ast.unparse(node)}")
            return None
        if called.kind == "class":
            return Value("instance", called.of)
        return self._result(node, name, fitting)

    def _result(self, node: ast.AST, name: str, known: list[Signature]) -> Value | None:
        for signature in known:
            text = re.sub(r"Optional\[(.*)\]", r"\1", signature.returns)
            last = re.split(r"[\[ |]", text)[0].split(".")[-1]
            if isinstance(found := getattr(self.api, last, None), type) and last not in PLAIN:
                return Value("instance", found)
            if last in PLAIN:
                return Value("plain", object)
        told = [x.returns for x in known]
        self._say(node, f"{name} gives {told or 'what no one says'}: {LOST}")
        return None

    def _say(self, node: ast.AST, what: str) -> None:
        self.wrong.append(f"line {getattr(node, 'lineno', 0)}: {what}")


def signatures(function: Any) -> list[Signature]:
    """Every overload that a binding's docstring gives."""
    text = str(getattr(function, "__doc__", "") or "")
    return list(_signatures(text))


def _signatures(text: str) -> Iterator[Signature]:
    for line in text.splitlines():
        match = re.match(r"\s*(?:\d+\. )?\w*\((.*)\) -> (.+?)\s*$", line)
        if not match or "*args" in match[1]:
            continue
        parts = [x for x in _split(match[1]) if x.strip()]
        names = [x.split(":")[0].split("=")[0].strip() for x in parts]
        own = 1 if names and names[0] in ("self", "arg0") else 0
        required = sum("=" not in re.sub(r"<.*", "", x) for x in parts[own:])
        yield Signature(tuple(names[own:]), required, match[2])


def _split(text: str) -> Iterator[str]:
    depth, part = 0, ""
    for letter in text:
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and depth == 0:
            yield part
            part = ""
        else:
            part += letter
    yield part
