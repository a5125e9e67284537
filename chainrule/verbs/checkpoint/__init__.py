"""plan and checkpoint: what a training step needs, and the backward pass in the memory you have.

program   a model with a batch as the planner's problem
plan      the verb: how much, what is kept, what it costs -> Plan
module    the model with its planned passes, a drop-in ``nn.Module``
apply     the same with torch's own checkpointing on the user's modules
"""
