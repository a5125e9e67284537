"""Networks with one planted fault each, and healthy ones that look suspicious: the table of ``benchmarks.faults``."""
