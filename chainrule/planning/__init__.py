"""Which values of a forward pass are kept for its backward pass, and which are computed again: pure data in and out.

problem    tasks, storages, schedules
simulate   bytes alive over a schedule: the only judge
blocks     the forward pass as a chain, repeated blocks found
mincut     save or recompute at a price per byte
options    what one block can keep
chain      dynamic programming over blocks, with nested recomputation
slots      its tables: costs by slots of memory
improve    local search on whole schedules
bound      what no schedule can beat: minimum cuts at single instants
instants   of the backward pass, and what is there anyway
windows    several of them together, for small problems: an integer program
frontier   all plans worth having: where to start reading
by_hand    plans that keep what somebody names
budget     budgets as people write them
"""
