"""Hostile input for each parser that reads from outside: see README.md beside this file."""
