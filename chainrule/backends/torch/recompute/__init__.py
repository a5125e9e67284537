"""Planned backward passes in torch.

extract    lines of a program, run on fake tensors -> the planner's problem
joint      a traced model as lines; source: a schedule as two functions; module: autograd around them
fx_lines   a joint graph of torch.fx as lines; compile: a back end of torch.compile
eager      what eager execution allocates; calibrate: what each line costs on this machine
"""
