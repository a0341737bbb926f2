"""The linker: a columnar graph, the passes over it, layout and fixups."""
