"""Native code: a whole training loop of a small network as LLVM text, compiled by llvmlite.

prepare, optimizers     one step as one graph, torch's rules included
inner_derivatives, pools     rewrites of that graph: fewer products, no gathers
schedule, plan     which loops
layout, axes, memory     which memory
program, gather, copies, draws     the loop over steps
kernels, accumulate, blocks, write, access     one loop nest as LLVM text, by
emitter, values, forms, vector_math     instructions
sharing, meetings     which thread writes what, and where they wait     threads, team     how many, and who
jit, tiers, search     machine code and its cache; better code beside the run

``verbs.native`` drives it with torch's models and optimizers.
"""
