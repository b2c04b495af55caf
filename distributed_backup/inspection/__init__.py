"""Test a directory, a bucket or a server for what a run needs of it.

Nothing is assumed of the place: each check does what a run does, with the classes that a run uses, and compares the
result. All files are in a folder or below a key of this test alone. Files of a run in the same place are not opened.

The limit: a check shows what held while it ran, on this machine or on the two that met.
"""
