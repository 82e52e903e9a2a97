"""Speed and memory beside what users would pick instead: ``make bench``, or ``python -m tests.benchmarks``.

Each case runs in a process of its own for each framework and gives rows of one table. Two sides of a ratio
run in turns in the same process, so that whatever else the machine does slows both.
"""
