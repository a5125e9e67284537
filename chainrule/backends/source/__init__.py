"""Source text for people: functions of arrays whose sizes are read from the arguments, in NumPy, JAX and torch."""

from chainrule.backends.source.languages import JAX as JAX
from chainrule.backends.source.languages import LANGUAGES as LANGUAGES
from chainrule.backends.source.languages import NUMPY as NUMPY
from chainrule.backends.source.languages import TORCH as TORCH
from chainrule.backends.source.languages import Language as Language
from chainrule.backends.source.lower import lower as lower
from chainrule.backends.source.write import Function as Function
from chainrule.backends.source.write import helpers as helpers
from chainrule.backends.source.write import write as write
