"""The verbs of the command line; a module is imported when one of its verbs is typed."""
