"""A drawing of a run from the events of its workers: who led when, and what each preemption cost.

`history` makes a model of the run, `costs` counts what was lost, `drawing` and `page` show both.
"""
