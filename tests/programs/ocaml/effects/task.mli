type _ Effect.t += Yield : int -> unit Effect.t

val run : string -> string
(** Yields three times; between two yields the fiber holds the name and this code. *)
