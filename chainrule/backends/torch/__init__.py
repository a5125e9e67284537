"""Graphs as readable torch code: ``emit`` (text), ``compile`` (callable), ``run`` (values), ``step``."""

from chainrule.backends.torch.compile import Compiled as Compiled
from chainrule.backends.torch.compile import compile as compile
from chainrule.backends.torch.compile import run as run
from chainrule.backends.torch.emit import emit as emit
from chainrule.backends.torch.step import Step as Step
from chainrule.backends.torch.step import step as step
