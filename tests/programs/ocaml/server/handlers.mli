(** What the server does for a visitor: the text of a page each. *)

val home : Store.visitor -> string
val stats : Store.visitor -> string
val slow : Store.visitor -> string Lwt.t
val rename : Store.visitor -> string -> string
