"""What reads relocatable ELF files; imports nothing that links or touches a process."""
