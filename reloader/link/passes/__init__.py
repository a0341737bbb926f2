"""One file a pass; `pipeline.py` calls them in order."""
