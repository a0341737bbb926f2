type page = Found of string Lwt.t | Missing

(* Closures taken when the server started: no assignment to a module's block reaches them. *)
let table : (string * (Store.visitor -> string)) list =
  [ ("", Handlers.home); ("stats", Handlers.stats) ]

let dispatch who = function
  | [ name ] when List.mem_assoc name table -> Found (Lwt.return (List.assoc name table who))
  | [ "slow" ] -> Found (Handlers.slow who)
  | [ "name"; name ] -> Found (Lwt.return (Handlers.rename who name))
  | _ -> Missing
