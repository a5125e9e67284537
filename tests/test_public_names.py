"""Every public name is documented: where it is defined, with an example that runs, and in docs/.

Public are the names in ``chainrule.__all__`` and the classes of results that are reached from them: what a verb
returns, and what the fields and properties of that hold.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import chainrule
from chainrule.errors import ChainruleError

ROOT = Path(__file__).resolve().parent.parent
# Rooms whose classes a result may hold, but which are the inside of the house.
INSIDE = tuple(f"chainrule.{room}." for room in ("ir", "ops", "interpreters", "frontends", "backends", "planning"))
# What an annotation in words does not say: these hold results and are typed Any, so that no heavy module is imported.
HELD = {"Case": ("DeriveResult", "MomentsResult", "DiagnoseResult", "Chain")}


def public() -> list[str]:
    return [name for name in chainrule.__all__ if not isinstance(getattr(chainrule, name), ModuleType)]


def classes_in(annotation: Any, module: ModuleType) -> Iterator[type]:
    """The chainrule classes that an annotation names."""
    for word in re.findall(r"[A-Za-z_]\w*", annotation if isinstance(annotation, str) else str(annotation)):
        found = getattr(module, word, None)
        if isinstance(found, type) and found.__module__.startswith("chainrule.") and not word.startswith("_"):
            yield found


def held_by(cls: type) -> Iterator[type]:
    module = inspect.getmodule(cls)
    assert module is not None
    annotations = [f.type for f in dataclasses.fields(cls) if f.repr] if dataclasses.is_dataclass(cls) else []
    for _, member in members(cls):
        function = member.fget if isinstance(member, property) else getattr(member, "func", member)
        annotations.append(getattr(function, "__annotations__", {}).get("return", ""))
    for annotation in annotations:
        yield from classes_in(annotation, module)


@functools.cache
def results() -> dict[str, type]:
    """The classes that a user meets, by name."""
    found: dict[str, type] = {}
    waiting: list[type] = []
    for name in public():
        thing = getattr(chainrule, name)
        module = inspect.getmodule(thing)
        assert module is not None
        waiting += [thing] if isinstance(thing, type) else classes_in(thing.__annotations__.get("return", ""), module)
    while waiting:
        cls = waiting.pop()
        if cls.__name__ in found or cls.__module__.startswith(INSIDE) or issubclass(cls, ChainruleError):
            continue
        found[cls.__name__] = cls
        waiting += held_by(cls)
    for cls, held in HELD.items():
        assert cls in found and set(held) <= set(found), f"{held} of {cls} are not reached"
    return dict(sorted(found.items()))


def members(cls: type) -> list[tuple[str, Any]]:
    """Public methods and properties that the class itself defines."""
    return [
        (name, member)
        for name, member in vars(cls).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, property | functools.cached_property | classmethod))
    ]


def attributes(cls: type) -> list[str]:
    """Public fields, those that are not said to be the inside by ``repr=False`` and no word in the docstring."""
    if not dataclasses.is_dataclass(cls):
        return []
    return [f.name for f in dataclasses.fields(cls) if not f.name.startswith("_") and f.repr]


def text_of(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__ or "")


def mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def headline(text: str) -> str:
    """What is wrong with a docstring's first line, or ''."""
    first, *rest = text.splitlines() or [""]
    if not first.strip():
        return "has no docstring"
    if rest and rest[0].strip():
        return "does not begin with one line"
    return "" if first.rstrip().endswith((".", ":", ";")) else f"its first line does not end: {first!r}"


# ---- where it is defined ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", public())
def test_a_public_name_says_what_it_is_with_an_example(name: str) -> None:
    text = text_of(getattr(chainrule, name))
    assert not headline(text), f"chainrule.{name} {headline(text)}"
    assert ">>>" in text, f"the docstring of chainrule.{name} has no example"


@pytest.mark.parametrize("name", [n for n in public() if not isinstance(getattr(chainrule, n), type)])
def test_a_public_function_says_what_its_arguments_are(name: str) -> None:
    function = getattr(chainrule, name)
    text = text_of(function)
    elsewhere = re.search(r"as ``torch\.func\.\w+``|:func:`grad`", text)  # their signature is documented there
    if elsewhere:
        return
    told = [p for p in inspect.signature(function).parameters if not p.startswith("_")]
    missing = [p for p in told if not mentions(text, p)]
    assert not missing, f"the docstring of chainrule.{name} does not mention {missing}"


@pytest.mark.parametrize("name", results())
def test_a_result_says_what_it_holds(name: str) -> None:
    cls = results()[name]
    text = text_of(cls)
    generated = f"{name}("  # what dataclass writes where there is none
    assert text and not text.startswith(generated), f"{cls.__module__}.{name} has no docstring"
    assert not headline(text), f"{cls.__module__}.{name}: {headline(text)}"
    untold = [a for a in attributes(cls) if not mentions(text, a)]
    assert not untold, f"the docstring of {cls.__module__}.{name} does not mention {untold}"
    silent = [m for m, member in members(cls) if not (getattr(member, "__doc__", "") or "").strip()]
    assert not silent, f"{cls.__module__}.{name}: {silent} have no docstring"


@pytest.mark.parametrize("name", [n for n in results() if n.endswith("Result")])
def test_a_result_is_frozen_and_plain_data_on_request(name: str) -> None:
    cls: Any = results()[name]
    assert dataclasses.is_dataclass(cls) and getattr(cls, "__dataclass_params__").frozen  # noqa: B009 - no name of typing's
    assert "to_dict" in vars(cls)


# ---- in the documentation --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", public())
def test_a_public_name_is_in_a_guide(name: str) -> None:
    guides = "\n".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs" / "guides").glob("*.md")))
    assert mentions(guides, f"cr.{name}"), f"no page in docs/guides/ shows cr.{name}"


@functools.cache
def referred_to() -> frozenset[str]:
    """What the pages of docs/reference/ show, by autodoc: dotted names."""
    pages = "\n".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs" / "reference").glob("*.md")))
    return frozenset(re.findall(r"^\.\. auto\w+:: ([\w.]+)$", pages, re.MULTILINE))


@pytest.mark.parametrize("name", public())
def test_a_public_name_is_in_the_reference(name: str) -> None:
    thing = getattr(chainrule, name)
    known = {f"chainrule.{name}", f"{thing.__module__}.{thing.__qualname__}"}
    assert known & referred_to(), f"docs/reference/ shows no chainrule.{name}"


@pytest.mark.parametrize("name", results())
def test_a_result_is_in_the_reference(name: str) -> None:
    cls = results()[name]
    known = {f"{cls.__module__}.{name}", f"chainrule.{name}"}
    assert known & referred_to(), f"docs/reference/results.md has no autoclass:: {cls.__module__}.{name}"
