"""``initialize_``: where a network should start. See ``initialize`` for the verb and the order of its parts."""

from chainrule.verbs.initialize.initialize import initialize_ as initialize_
from chainrule.verbs.initialize.result import InitializeResult as InitializeResult
