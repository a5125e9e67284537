"""plan and checkpoint: what a training step needs, and the backward pass in the memory you have.

program     a model with a batch as the planner's problem
structure   what a model returns, taken apart and put together again
plan        the verb: how much, what is kept, what it costs -> Plan
module      the model with its planned passes, a drop-in ``nn.Module``
apply       the same with torch's own checkpointing on the user's modules
by_modules  that, by itself, for a model that no graph can hold
"""
