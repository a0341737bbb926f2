"""Whether two versions of the code agree on the layout of what they share."""
