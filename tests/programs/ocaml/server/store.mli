(** Visitors, in memory only: what a restart would lose. *)

type visitor = { token : string; name : string; mutable views : int }

val visit : string option -> visitor
(** The visitor of a token, or a new one; one more view. *)

val count : unit -> int
val rename : visitor -> string -> visitor
