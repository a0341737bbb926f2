(** From a request's path to the page of a handler. *)

type page = Found of string Lwt.t | Missing

val dispatch : Store.visitor -> string list -> page
