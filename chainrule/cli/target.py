"""A model named on the command line: ``file.py:function``, ``package.module:function``, or a training script.

The function takes no arguments and returns ``cr.case(...)`` or its keywords as a dict. It is the user's own code and
runs as such, in this process; whatever can go wrong with it is a ModelError in four parts. Its output goes to stderr,
so that stdout holds results only.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from chainrule.errors import ChainruleError, MissingExtraError, ModelError

if TYPE_CHECKING:
    from chainrule.verbs.case import Case

_TARGET = re.compile(r"(?P<place>.+\.py|[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<function>[^\W\d]\w*(\.[^\W\d]\w*)*)")
_FORM = "file.py:function or package.module:function"
_RETURN = 'return cr.case(model, batch, loss, optimizer), or {"model": model, "batch": batch, "loss": loss}'


def is_target(text: str) -> bool:
    """Whether the text names a function, as no formula does.

    >>> is_target("model.py:build"), is_target("zoo.small:mlp"), is_target("y = X[:, None]")
    (True, True, False)
    """
    return bool(_TARGET.fullmatch(text.strip())) or bool(re.fullmatch(r"[^=;\n]+\.py(:.*)?", text.strip()))


def require_torch(verb: str) -> None:
    """Asks for the extra before any file of the user is run.

    Raises:
        MissingExtraError: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError(verb, "torch", "torch")


def script_of(target: str) -> Path | None:
    """The training script that a target names: an existing ``.py`` file without a function behind it."""
    path = Path(target.strip())
    return path if path.suffix == ".py" and path.is_file() else None


def load_case(target: str, verb: str, arguments: Sequence[str] = (), at_step: int = 1) -> Case:
    """The case that a target's function returns, or that a training script is at its optimizer's step.

    Args:
        target: ``file.py:function``, ``package.module:function`` or ``train.py``. verb: who asks, for messages.
        arguments: the script's own. at_step: which of its optimizer's steps.

    Raises:
        MissingExtraError: torch is not installed. ModelError: anything that is wrong with the target.
    """
    require_torch(verb)
    script = script_of(target)
    if script is not None:
        from chainrule.verbs.diagnose.of_script import script_case

        with output_on_stderr():
            return script_case(script, arguments, at_step)
    place, name = _parts(target, verb)
    with output_on_stderr():
        function = _without_arguments(_function(_module(place), place, name), place, name)
        return _case(_called(function, place, name), target)


def load_callable(target: str, verb: str) -> Callable[..., Any]:
    """The function itself that a target names; or any other callable, such as a module made in the file.

    Raises:
        MissingExtraError: torch is not installed. ModelError: anything that is wrong with the target.
    """
    require_torch(verb)
    place, name = _parts(target, verb)
    with output_on_stderr():
        return _function(_module(place), place, name)


def _parts(target: str, verb: str) -> tuple[str, str]:
    match = _TARGET.fullmatch(target.strip())
    if match is None:
        raise ModelError(
            f"{verb} does not know which function to call",
            given=repr(target),
            required=_FORM,
            instead=f"{target.strip().rstrip(':')}:build" if ".py" in target else "model.py:build",
        )
    return match["place"], match["function"]


@contextlib.contextmanager
def output_on_stderr() -> Iterator[None]:
    """While the user's code runs: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


# ---- the module ------------------------------------------------------------------------------------------
def _module(place: str) -> ModuleType:
    if place.endswith(".py"):
        return _from_file(Path(place))
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        # The named package itself, or something that it imports?
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            raise ModelError(
                f"there is no module {error.name!r} here",
                given=place,
                required="a package on the path or below the current folder",
                instead=f"{place.replace('.', '/')}.py:function, if that file exists",
            ) from None
        raise _raised(error, f"importing {place}", place) from error
    except BaseException as error:
        raise _raised(error, f"importing {place}", place) from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path(".")
        near = difflib.get_close_matches(path.name, sorted(p.name for p in folder.glob("*.py")), 1)
        raise ModelError(
            f"there is no file {path}" if not path.is_dir() else f"{path} is a folder",
            given=str(path),
            required="a Python file",
            instead=str(folder / near[0]) if near else "a path that exists",
        )
    path = path.resolve()
    if str(path.parent) not in sys.path:  # and it stays: models import what they need when they run
        sys.path.insert(0, str(path.parent))
    name = path.stem
    while name in sys.modules:  # random.py is a fine name for a file
        name += "_"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        raise _raised(error, f"importing {path.name}", str(path)) from error
    return module


# ---- the function ----------------------------------------------------------------------------------------
def _function(module: ModuleType, place: str, name: str) -> Callable[..., Any]:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            own = [
                n
                for n, v in vars(module).items()
                if inspect.isfunction(v) and v.__module__ == module.__name__ and not n.startswith("_")
            ]
            near = difflib.get_close_matches(part, own, 1, 0.5) or own[:1]
            raise ModelError(
                f"{place} has no function {name!r}",
                given=name,
                required=f"one of {', '.join(own)}" if own else "a function without arguments",
                instead=f"{place}:{near[0]}" if near else f"def {name}(): {_RETURN.partition(',')[0]}",
            )
        found = getattr(found, part)
    if not callable(found):
        raise ModelError(
            f"{name!r} in {place} is not a function",
            given=type(found).__name__,
            required="a function",
            instead=f"def build(): {_RETURN}",
        )
    return found


def _without_arguments(found: Callable[..., Any], place: str, name: str) -> Callable[[], Any]:
    needed = _needed(found)
    if needed:
        raise ModelError(
            f"{name!r} in {place} needs {'an argument' if len(needed) == 1 else 'arguments'}",
            given=f"{name}({', '.join(needed)})",
            required="a function that can be called without arguments",
            instead=f"def build(): return {name}(...), or a default for {needed[0]}",
        )
    return found


def _needed(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some callables in C have none
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def _called(function: Callable[[], Any], place: str, name: str) -> Any:
    try:
        return function()
    except BaseException as error:
        if isinstance(error, ChainruleError):
            raise error.located(f"{place}:{name}") from error
        raise _raised(error, f"{place}:{name}", place) from error


def _raised(error: BaseException, doing: str, place: str) -> BaseException:
    """What the user's code raised, as an error of ours that names the user's line."""
    if isinstance(error, KeyboardInterrupt):
        return error
    required = "code that runs without errors"
    instead = "--debug shows the whole traceback"
    if isinstance(error, SystemExit):
        return ModelError(
            f"{doing} ended the program",
            given=f"SystemExit({error.code!r})",
            required="a file that can be imported",
            instead='what parses arguments or trains goes below `if __name__ == "__main__":`',
        )
    if isinstance(error, SyntaxError):
        line = error.lineno
        return ModelError(
            f"{doing}: {type(error).__name__} in {error.filename}, line {line}",
            given=(error.text or "").strip() or error.msg,
            required=f"valid Python: {error.msg}",
            instead="the corrected line",
        )
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).name == Path(place).name] or frames[-1:]
    said = " ".join(str(error).split())
    missing = isinstance(error, ModuleNotFoundError) and error.name
    return ModelError(
        f"{doing} raised {type(error).__name__}{f': {said}' if said else ''}",
        given=f"line {own[-1].lineno}: {own[-1].line}" if own and own[-1].line else "",
        required=f"the package {error.name}" if missing else required,  # type: ignore[attr-defined]
        instead=f"install what provides {error.name}" if missing else instead,  # type: ignore[attr-defined]
    )


# ---- what it returned ------------------------------------------------------------------------------------
def _case(found: Any, target: str) -> Case:
    from chainrule.verbs.case import Case, case

    if isinstance(found, Case):
        return found
    if not isinstance(found, Mapping):
        raise ModelError(
            f"{target} returned neither a case nor its keywords",
            given=_kind(found),
            required="cr.case(...), or its keywords as a dict",
            instead=_RETURN,
        )
    known = list(inspect.signature(case).parameters)
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise ModelError(
                f"{target} returned a dict with the unknown key {key!r}",
                given=", ".join(map(str, found)),
                required=f"keys out of {', '.join(known)}",
                instead=f"the key {near[0]!r}" if near else _RETURN,
            )
    if "data" in found and "batch" not in found:  # to train, the data are enough
        found = {**found, "batch": None}
    missing = [key for key in ("model", "batch") if key not in found]
    if missing:
        raise ModelError(
            f"{target} returned a dict without {' and '.join(map(repr, missing))}",
            given=", ".join(map(str, found)) or "an empty dict",
            required="at least model and batch",
            instead=_RETURN,
        )
    return case(**found)


def _kind(value: Any) -> str:
    if value is None:
        return "None (is there a return?)"
    if inspect.iscoroutine(value):
        value.close()
        return "a coroutine (async def)"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (list, tuple)) else "")
