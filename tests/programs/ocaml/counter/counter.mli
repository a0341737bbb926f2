(** State of several kinds, some of it hidden, and functions that others capture. *)

exception Limit of int

val total : int ref
val name : string
val bump : int -> int
val add : int -> int -> int
val seen : string -> int
val guarded : int -> int
val hidden : unit -> int
val same_table : unit -> bool
