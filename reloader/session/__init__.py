"""One live program from attach to detach: its objects, its history, what it can return to."""
