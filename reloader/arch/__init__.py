"""Everything a CPU decides, one file each, mostly as data."""
