type guest = { name : string; mutable visits : int }

let guests : (string, guest) Hashtbl.t = Hashtbl.create 16

let known name =
  match Hashtbl.find_opt guests name with
  | Some guest -> guest
  | None ->
      let guest = { name; visits = 0 } in
      Hashtbl.replace guests name guest;
      guest

let greet name =
  let guest = known name in
  guest.visits <- guest.visits + 1;
  guest

let name guest = guest.name
let summary guest = Printf.sprintf "visit %d" guest.visits
