(* First-class modules in a table, and a lazy value. *)
module type PLUG = sig
  val name : string
  val apply : int -> int
end

module Double = struct
  let name = "double"
  let apply n = n * 2
end

let table : (string, (module PLUG)) Hashtbl.t = Hashtbl.create 4
let register (module P : PLUG) = Hashtbl.replace table P.name (module P : PLUG)
let () = register (module Double)
let sum = lazy (List.fold_left ( + ) 0 (List.init 101 Fun.id))

let apply name n =
  let module P = (val Hashtbl.find table name) in
  P.apply n
