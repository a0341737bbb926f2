"""From a folder to finished files: events, builds, and which files may be trusted."""
