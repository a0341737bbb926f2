"""The parts of the OCaml host: units, compatibility, state, the runtime inside the program."""
