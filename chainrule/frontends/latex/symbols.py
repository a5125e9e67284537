"""Which of the user's names a LaTeX symbol is: ``\\boldsymbol{\\Omega}_{0}`` is Omega0, Omega_0 or Ω_0."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

_SPECIAL = {"ℓ": "ell", "ϕ": "phi", "ϵ": "epsilon", "∂": "partial"}
_VARIANTS = {"varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta", "varrho": "rho", "varsigma": "sigma"}
GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi "
    "psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell".split()
) | frozenset(_VARIANTS)
ACCENTS = {"hat": "hat", "widehat": "hat", "tilde": "tilde", "widetilde": "tilde", "bar": "bar", "overline": "bar"}
FONTS = frozenset(
    "mathbf boldsymbol bm mathrm mathit mathsf mathtt mathcal mathscr mathfrak text textbf textit textrm textsf texttt "
    "operatorname vec pmb mathbb mathnormal mathop ensuremath symbf symbfit".split()
)

# Spellings of functions that are another name in the formula language.
FUNCTIONS = {
    "ln": "log",
    "sig": "sigmoid",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "Tr": "tr",
    "trace": "tr",
    "Diag": "diag",
    "sgn": "sign",
    "sg": "stop_gradient",
    "LReLU": "leaky_relu",
    "SiLU": "silu",
    "GELU": "gelu",
    "logsumexp": "logsumexp",
    "vecdiag": "diag",
}


def canonical(name: str) -> str:
    """What all spellings of a symbol have in common: Latin names of Greek letters, no underscores.

    >>> canonical("ω_0"), canonical("omega0"), canonical("W_{k,2}")
    ('omega0', 'omega0', 'Wk2')
    """
    found = []
    for character in name:
        if character in "_,{} \\":
            continue
        if character in _SPECIAL:
            found.append(_SPECIAL[character])
            continue
        spelled = unicodedata.name(character, "")
        if spelled.startswith("GREEK "):
            letter = spelled.split()[-1].lower().replace("lamda", "lambda").replace("symbol", "")
            found.append(letter.capitalize() if "CAPITAL" in spelled else letter)
        else:
            found.append(character)
    joined = "".join(found)
    for variant, plain in _VARIANTS.items():
        joined = joined.replace(variant, plain)
    return joined


class Symbols:
    """The names that a text may mean."""

    def __init__(self, names: Iterable[str], dimensions: Iterable[str]) -> None:
        self.names: dict[str, list[str]] = {}
        for name in names:
            self.add(name)
        self.dimensions = {canonical(d): d for d in dimensions}

    def add(self, name: str) -> None:
        """One more name."""
        self.names.setdefault(canonical(name), []).append(name)

    def find(self, written: str) -> str | None:
        """The user's name of a symbol, ``omega_0``; None if there is none."""
        found = self.names.get(canonical(written))
        if found is None:
            return self.dimensions.get(canonical(written))
        return written if written in found else found[0]
