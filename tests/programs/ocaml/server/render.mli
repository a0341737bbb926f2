(** HTML, as text. *)

val page : title:string -> string list -> string
val visitor : Store.visitor -> string
