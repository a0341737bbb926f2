"""Error types that build their own text. Types are for programs, text is for people."""
