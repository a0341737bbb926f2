"""The daemon: clients, the work thread, and the programs it attends."""
