"""What outlives the daemon: schema, journal, queries. Imports nothing of reloader."""
