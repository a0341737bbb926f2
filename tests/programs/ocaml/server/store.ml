type visitor = { token : string; name : string; mutable views : int }

let visitors : (string, visitor) Hashtbl.t = Hashtbl.create 64
let made = ref 0

let add () =
  incr made;
  let token = Printf.sprintf "t%06d" !made in
  let visitor = { token; name = "visitor " ^ string_of_int !made; views = 0 } in
  Hashtbl.replace visitors token visitor;
  visitor

let visit token =
  let known = Option.bind token (Hashtbl.find_opt visitors) in
  let visitor = match known with Some visitor -> visitor | None -> add () in
  visitor.views <- visitor.views + 1;
  visitor

let count () = Hashtbl.length visitors

let rename visitor name =
  let renamed = { visitor with name } in
  Hashtbl.replace visitors visitor.token renamed;
  renamed
