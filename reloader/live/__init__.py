"""The live process seen from the daemon, behind the Target protocol."""
