"""Every op, grouped as a textbook groups them. Importing this package fills the registry ``chainrule.ir.OPS``."""

from chainrule.ops import arithmetic as arithmetic
from chainrule.ops import batch_normalization as batch_normalization
from chainrule.ops import casts as casts
from chainrule.ops import composites as composites
from chainrule.ops import contraction as contraction
from chainrule.ops import elements as elements
from chainrule.ops import elementwise as elementwise
from chainrule.ops import indexing as indexing
from chainrule.ops import leaves as leaves
from chainrule.ops import linear_algebra as linear_algebra
from chainrule.ops import loops as loops
from chainrule.ops import movement as movement
from chainrule.ops import normalization as normalization
from chainrule.ops import opaque as opaque
from chainrule.ops import random as random
from chainrule.ops import reductions as reductions
from chainrule.ops import slicing as slicing
from chainrule.ops import unknown as unknown
from chainrule.ops import windows as windows
