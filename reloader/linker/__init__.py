"""The linker alone: objects and archives into memory, without a program that they belong to."""
