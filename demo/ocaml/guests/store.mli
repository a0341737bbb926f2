(** Guests, in memory only: a restart would forget them. *)

type guest

val greet : string -> guest
(** The guest of that name, seen once more. *)

val name : guest -> string
val summary : guest -> string
