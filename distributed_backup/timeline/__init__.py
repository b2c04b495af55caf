"""Draw a run from the events of its workers: who led when, and what each incident cost.

`history` models the run, `incidents` counts the costs, `chart` and `html_page` show both.
"""
