"""What lives inside the target: slot table, shared structs, the agent.

Imports nothing of reloader.
"""
