"""What the package does, one verb a file: functions that take values, return objects and print nothing.

The command line and `distill`'s Python interface are made of them. May import everything but cli.
"""
