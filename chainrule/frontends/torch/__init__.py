"""torch functions, modules and training cases as graphs.

    trace       a function or module with example arguments -> Trace
    trace_case  a model, a batch and a loss -> Trace
    eager       the same program run as it is, for comparison

``record`` runs and records, ``lower`` knows what each aten op is called here, ``untouched`` keeps the promise
that the model is as it was.
"""

from chainrule.frontends.torch.generators import generator_states as generator_states
from chainrule.frontends.torch.generators import restore_generators as restore_generators
from chainrule.frontends.torch.generators import seeded as seeded
from chainrule.frontends.torch.modules import ModuleCall as ModuleCall
from chainrule.frontends.torch.record import active as active
from chainrule.frontends.torch.surroundings import Surroundings as Surroundings
from chainrule.frontends.torch.surroundings import modules_of as modules_of
from chainrule.frontends.torch.trace import Trace as Trace
from chainrule.frontends.torch.trace import eager as eager
from chainrule.frontends.torch.trace import loss_value as loss_value
from chainrule.frontends.torch.trace import run_case as run_case
from chainrule.frontends.torch.trace import trace as trace
from chainrule.frontends.torch.trace import trace_case as trace_case
from chainrule.frontends.torch.untouched import untouched as untouched
