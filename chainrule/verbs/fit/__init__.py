"""``fit``: train a model; ``compile_step``: one step of it, for a loop of one's own.

verb          fit: reads the arguments, puts the parts together
loop          epochs, and what happens between them
data          order of samples     schedule   learning rates     stopping   early stopping, best weights
evaluate      validation           saving     saved runs         interrupt, progress   Ctrl-C, the bar
choice        which engine runs the steps     torch_engine       the derived step in torch
step          compile_step         several    several modules as one
result        FitResult
"""

from chainrule.verbs.fit.forward import compile_forward as compile_forward
from chainrule.verbs.fit.loop import Callback as Callback
from chainrule.verbs.fit.result import FitResult as FitResult
from chainrule.verbs.fit.step import CompiledStep as CompiledStep
from chainrule.verbs.fit.step import compile_step as compile_step
from chainrule.verbs.fit.verb import fit as fit
