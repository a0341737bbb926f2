"""A daemon that makes a saved object file the running code of a live native process."""
