"""What a language needs beyond ELF, one file each."""
