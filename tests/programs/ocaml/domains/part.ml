(* `first` and `second` are equal in every version: a domain that sees them differ saw half of a
   swap. Neither is a constant that the compiler could keep elsewhere than in the module's block. *)
let first = Sys.opaque_identity 1
let second = Sys.opaque_identity 1
let work n = List.length (List.init (n land 15) Fun.id)
